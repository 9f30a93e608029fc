//! Errors as a person reads them: with all their causes.

use std::{error::Error, fmt};

/// Shows an error and what caused it on one line. A cause whose text an outer error has already
/// said is not said again.
pub struct Chain<'a>(pub &'a dyn Error);

impl fmt::Display for Chain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut said = self.0.to_string();
        f.write_str(&said)?;
        let mut next = self.0.source();
        while let Some(cause) = next {
            let text = cause.to_string();
            if !said.contains(&text) {
                write!(f, ": {text}")?;
                said = text;
            }
            next = cause.source();
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    enum Sample {
        #[error("no space left")]
        Full,
        #[error("write images/manifest.json")]
        Write(#[source] Box<Sample>),
        #[error("put it to sleep: {0}")]
        Outer(#[source] Box<Sample>),
    }

    #[test]
    fn every_cause_is_said_once() {
        let error = Sample::Outer(Sample::Write(Sample::Full.into()).into());
        assert_eq!(
            Chain(&error).to_string(),
            "put it to sleep: write images/manifest.json: no space left"
        );
        assert_eq!(Chain(&Sample::Full).to_string(), "no space left");
    }
}
