//! Asks the API server who has a token and what he may do.

use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use k8s_openapi::api::authentication::v1::{TokenReview, TokenReviewSpec};
use k8s_openapi::api::authorization::v1::{SubjectAccessReview, SubjectAccessReviewSpec};
use kube::api::PostParams;
use kube::{Api, Client};
use sha2::{Digest, Sha256};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::cache::Cache;
use super::{AUDIENCE, Access};

/// How long an answer is good: a right that is taken away is gone after it.
const GOOD: Duration = Duration::from_secs(5);
/// Answers kept at most, of each kind.
const KEPT: usize = 256;
/// What is asked of the API server at a time. Whoever knocks without a right can cause so much and no more.
const AT_ONCE: usize = 4;
/// How long the API server has, waiting for a turn included.
const ANSWER: Duration = Duration::from_secs(10);
/// Tokens of service accounts have a kilobyte or two.
const LONGEST: usize = 6 * 1024;

/// By which name a token's own id is in what the API server says of it.
const CREDENTIAL: &str = "authentication.kubernetes.io/credential-id";

/// Why nobody is let in.
#[derive(Debug, thiserror::Error)]
pub enum ReviewError {
    /// Not a token that could be one.
    #[error("the token is not one: {0}")]
    Malformed(&'static str),
    /// The API server does not accept the token.
    #[error("the token is not accepted: {0}")]
    NotAuthenticated(String),
    /// The user may not do it.
    #[error("{user} may not {access}{}{reason}", if reason.is_empty() { "" } else { ": " })]
    Forbidden {
        /// His name.
        user: String,
        /// What he wanted.
        access: Access,
        /// The API server's words, which may be empty.
        reason: String,
    },
    /// There is no API server to ask.
    #[error("tokens cannot be reviewed: this manager runs without Kubernetes")]
    NoKubernetes,
    /// It did not answer, or with an error.
    #[error("the {what} failed: {cause}")]
    Failed {
        /// Which review.
        what: &'static str,
        /// Why.
        cause: String,
    },
}

/// Who has a token, in the API server's words.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct User {
    /// His name.
    pub name: String,
    uid: Option<String>,
    groups: Option<Vec<String>>,
    extra: Option<BTreeMap<String, Vec<String>>>,
}

impl User {
    /// The token's id, by which the API server's audit log tells who has made it.
    pub fn credential(&self) -> Option<&str> {
        let ids = self.extra.as_ref()?.get(CREDENTIAL)?;
        ids.first().map(String::as_str)
    }
}

/// Asks, and remembers for seconds.
#[derive(Debug)]
pub struct Reviewer {
    client: Option<ClientBox>,
    users: Mutex<Cache<[u8; 32], User>>,
    rights: Mutex<Cache<(User, Access), ()>>,
    turns: Semaphore,
}

/// A client is not for printing.
struct ClientBox(Client);

impl std::fmt::Debug for ClientBox {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Client")
    }
}

impl Reviewer {
    /// One that asks with `client`; without it nobody with a token is let in.
    pub fn new(client: Option<Client>) -> Self {
        Self {
            client: client.map(ClientBox),
            users: Mutex::new(Cache::new(GOOD, KEPT)),
            rights: Mutex::new(Cache::new(GOOD, KEPT)),
            turns: Semaphore::new(AT_ONCE),
        }
    }

    /// Whose token it is.
    ///
    /// # Errors
    /// When it is nobody's, or that cannot be found out.
    pub async fn user(&self, token: &str) -> Result<User, ReviewError> {
        plausible(token)?;
        // What is remembered is no token.
        let key = Sha256::digest(token).into();
        if let Some(user) = lock(&self.users).get(&key, Instant::now()) {
            return Ok(user);
        }
        let review = TokenReview {
            spec: TokenReviewSpec {
                audiences: Some(vec![AUDIENCE.to_owned()]),
                token: Some(token.to_owned()),
            },
            ..TokenReview::default()
        };
        let user = answer(self.create("token review", &review).await?)?;
        lock(&self.users).put(key, user.clone(), Instant::now());
        Ok(user)
    }

    /// Whether `user` may do it.
    ///
    /// # Errors
    /// When he may not, or that cannot be found out.
    pub async fn permit(&self, user: &User, access: Access) -> Result<(), ReviewError> {
        let key = (user.clone(), access);
        if lock(&self.rights).get(&key, Instant::now()).is_some() {
            return Ok(());
        }
        let review = SubjectAccessReview {
            spec: SubjectAccessReviewSpec {
                user: Some(user.name.clone()),
                uid: user.uid.clone(),
                groups: user.groups.clone(),
                extra: user.extra.clone(),
                resource_attributes: Some(key.1.attributes()),
                non_resource_attributes: None,
            },
            ..SubjectAccessReview::default()
        };
        let status = self.create("access review", &review).await?.status;
        let status = status.unwrap_or_default();
        if !status.allowed {
            return Err(ReviewError::Forbidden {
                user: key.0.name,
                access: key.1,
                reason: status.reason.unwrap_or_default(),
            });
        }
        lock(&self.rights).put(key, (), Instant::now());
        Ok(())
    }

    async fn create<K>(&self, what: &'static str, review: &K) -> Result<K, ReviewError>
    where
        K: kube::Resource<DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + serde::Serialize
            + serde::de::DeserializeOwned,
    {
        let client = self.client.as_ref().ok_or(ReviewError::NoKubernetes)?;
        let failed = |cause: String| ReviewError::Failed { what, cause };
        let asked = async {
            let _turn = self.turns.acquire().await.ok();
            let api: Api<K> = Api::all(client.0.clone());
            api.create(&PostParams::default(), review).await
        };
        match timeout(ANSWER, asked).await {
            Ok(Ok(answered)) => Ok(answered),
            Ok(Err(error)) => Err(failed(error.to_string())),
            Err(_) => Err(failed(format!("no answer in {ANSWER:?}"))),
        }
    }
}

/// What the API server says about a token. That it is a good one is not enough: it must be for us.
fn answer(review: TokenReview) -> Result<User, ReviewError> {
    let status = review.status.unwrap_or_default();
    let refused = |why: &str| ReviewError::NotAuthenticated(why.to_owned());
    if status.authenticated != Some(true) {
        let why = status.error.as_deref().unwrap_or("it is nobody's");
        return Err(refused(why));
    }
    let audiences = status.audiences.unwrap_or_default();
    if !audiences.iter().any(|audience| audience == AUDIENCE) {
        return Err(refused("it is for another audience"));
    }
    let user = status.user.unwrap_or_default();
    let name = user.username.filter(|name| !name.is_empty());
    Ok(User {
        name: name.ok_or_else(|| refused("it has no user"))?,
        uid: user.uid,
        groups: user.groups,
        extra: user.extra,
    })
}

/// Whether it is worth asking the API server about.
fn plausible(token: &str) -> Result<(), ReviewError> {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.=+/~".contains(&byte);
    if token.is_empty() {
        return Err(ReviewError::Malformed("it is empty"));
    }
    if token.len() > LONGEST {
        return Err(ReviewError::Malformed("it is too long"));
    }
    if !token.bytes().all(is_part) {
        return Err(ReviewError::Malformed("it has signs that no token has"));
    }
    Ok(())
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Each change leaves it whole.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::authentication::v1::{TokenReviewStatus, UserInfo};

    use super::*;

    fn review(authenticated: bool, audiences: &[&str], name: &str) -> TokenReview {
        TokenReview {
            status: Some(TokenReviewStatus {
                authenticated: Some(authenticated),
                audiences: Some(audiences.iter().map(|one| (*one).to_owned()).collect()),
                user: Some(UserInfo {
                    username: Some(name.to_owned()),
                    ..UserInfo::default()
                }),
                error: None,
            }),
            ..TokenReview::default()
        }
    }

    #[test]
    fn only_a_good_token_for_this_audience_is_somebodys() {
        let user = answer(review(true, &["other", AUDIENCE], "jane")).unwrap();
        assert_eq!(user.name, "jane");
        for (bad, words) in [
            (review(false, &[AUDIENCE], "jane"), "nobody"),
            (review(true, &["other"], "jane"), "another audience"),
            // An API server that knows nothing of audiences says nothing of them.
            (review(true, &[], "jane"), "another audience"),
            (review(true, &[AUDIENCE], ""), "no user"),
            (TokenReview::default(), "nobody"),
        ] {
            let error = answer(bad).unwrap_err().to_string();
            assert!(error.contains(words), "{error}");
        }
    }

    #[test]
    fn what_can_be_no_token_is_not_asked_about() {
        assert!(plausible("eyJhbGciOi.eyJhdWQ.c2ln-_").is_ok());
        for bad in ["", "a b", "a\u{e9}", &"a".repeat(LONGEST + 1)] {
            assert!(plausible(bad).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_missing_right_is_called_by_its_name() {
        let error = ReviewError::Forbidden {
            user: "jane".into(),
            access: Access::Check { node: "n1".into() },
            reason: String::new(),
        };
        assert_eq!(
            error.to_string(),
            r#"jane may not get nodes/podmotion "n1""#
        );
    }
}
