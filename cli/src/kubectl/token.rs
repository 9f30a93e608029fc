//! The token that managers are shown: of a service account, for managers only, for ten minutes.

use std::fmt;
use std::str::FromStr;

use k8s_openapi::api::authentication::v1::{TokenRequest, TokenRequestSpec};
use k8s_openapi::api::core::v1::ServiceAccount;
use kube::api::PostParams;
use kube::{Api, Client};

use crate::args::parse_name;
use crate::cluster::ClusterError;

/// The audience that managers are.
const AUDIENCE: &str = "podmotion.komodor.com";

/// The shortest time that an API server makes a token for.
const SECONDS: i64 = 600;

/// What is to be done with it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// To see.
    Viewer,
    /// To have containers sleep and wake.
    Operator,
}

impl Role {
    /// The service account that may do it, as the chart makes it.
    fn account(self) -> &'static str {
        match self {
            Self::Viewer => "podmotion-viewer",
            Self::Operator => "podmotion-operator",
        }
    }
}

/// A service account.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Account {
    /// Its namespace; Podmotion's where it is missing.
    namespace: Option<String>,
    name: String,
}

impl FromStr for Account {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (namespace, name) = match text.split_once('/') {
            Some((namespace, name)) => (Some(namespace), name),
            None => (None, text),
        };
        let account = || {
            Ok(Self {
                namespace: namespace.map(parse_name).transpose()?,
                name: parse_name(name)?,
            })
        };
        account().map_err(|error: String| format!("{error}, as NAME or NAMESPACE/NAME"))
    }
}

/// Not for printing.
#[derive(Clone)]
pub struct Token(String);

impl Token {
    /// The text, for the header alone.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token")
    }
}

/// Has the API server make a token, of `given` or of the account for `role`.
///
/// # Errors
/// When the user may not, or there is no such account.
pub async fn make(
    client: &Client,
    podmotion: &str,
    given: Option<&Account>,
    role: Role,
) -> Result<Token, ClusterError> {
    let namespace = given.and_then(|account| account.namespace.as_deref());
    let namespace = namespace.unwrap_or(podmotion);
    let name = given.map_or(role.account(), |account| &account.name);
    let accounts: Api<ServiceAccount> = Api::namespaced(client.clone(), namespace);
    let request = TokenRequest {
        spec: TokenRequestSpec {
            audiences: vec![AUDIENCE.to_owned()],
            expiration_seconds: Some(SECONDS),
            bound_object_ref: None,
        },
        ..TokenRequest::default()
    };
    let failed = |cause: String| ClusterError::Token {
        account: format!("{namespace}/{name}"),
        cause,
    };
    let made = accounts
        .create_token_request(name, &PostParams::default(), &request)
        .await
        .map_err(|error| failed(crate::cluster::words(error)))?;
    let token = made.status.map(|status| status.token);
    let token = token.filter(|token| !token.is_empty());
    Ok(Token(
        token.ok_or_else(|| failed("the answer is empty".to_owned()))?,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_account_has_a_namespace_or_is_podmotions() {
        let account: Account = "viewer".parse().unwrap();
        assert_eq!((account.namespace, account.name.as_str()), (None, "viewer"));
        let account: Account = "shop/viewer".parse().unwrap();
        assert_eq!(account.namespace.as_deref(), Some("shop"));
        for bad in ["", "/", "shop/", "a/b/c", "A"] {
            let error = bad.parse::<Account>().unwrap_err();
            assert!(error.contains("NAMESPACE/NAME"), "{error}");
        }
    }

    #[test]
    fn a_token_is_not_printed() {
        assert_eq!(format!("{:?}", Token("secret".into())), "Token");
    }
}
