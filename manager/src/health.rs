//! Whether the manager is ready: what it depends on, in words.

/// How it is with the API server.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Cluster {
    /// Nobody is to talk to it.
    #[default]
    Unwanted,
    /// It has not answered yet.
    Waiting,
    /// It answers.
    Answers,
    /// It does not, and why.
    Fails(String),
}

impl Cluster {
    /// It has answered; whether that is new.
    pub fn answered(&mut self) -> bool {
        self.become_(Self::Answers)
    }

    /// It has not, and why; whether that is new.
    pub fn failed(&mut self, why: &str) -> bool {
        self.become_(Self::Fails(why.to_owned()))
    }

    /// It does not answer.
    pub fn is_failing(&self) -> bool {
        matches!(self, Self::Fails(_))
    }

    fn become_(&mut self, now: Self) -> bool {
        let new = *self != now;
        *self = now;
        new
    }

    /// Why the manager is not ready; `None` if it is. The folder of the shims is not among it: a manager that
    /// cannot watch it ends.
    pub fn unready(&self) -> Option<&str> {
        match self {
            Self::Unwanted | Self::Answers => None,
            Self::Waiting => Some("the API server has not answered yet"),
            Self::Fails(why) => Some(why),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_is_who_has_been_answered_or_asks_nobody() {
        assert_eq!(Cluster::Unwanted.unready(), None);
        let mut cluster = Cluster::Waiting;
        assert!(cluster.unready().is_some());
        assert!(cluster.answered());
        assert!(!cluster.answered());
        assert_eq!(cluster.unready(), None);
        assert!(cluster.failed("refused"));
        assert!(!cluster.failed("refused"));
        assert_eq!(cluster.unready(), Some("refused"));
        assert!(cluster.is_failing() && !Cluster::Waiting.is_failing());
    }
}
