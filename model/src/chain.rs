//! Errors as a person reads them: with all that is behind them, on one line.

use std::error::Error;
use std::fmt;

/// Shows an error and its causes. Libraries say the cause only there; what an outer error has said already is
/// not said again.
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
                said.push_str(&text);
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
        #[error("write images/manifest.json")]
        Same(#[source] Box<Sample>),
    }

    #[test]
    fn every_cause_is_said_once() {
        let said = |error: Sample| Chain(&error).to_string();
        let write = |cause: Sample| Sample::Write(cause.into());
        let whole = "put it to sleep: write images/manifest.json: no space left";
        assert_eq!(said(Sample::Outer(write(Sample::Full).into())), whole);
        assert_eq!(
            said(Sample::Same(write(Sample::Full).into())),
            "write images/manifest.json: no space left"
        );
        assert_eq!(said(Sample::Full), "no space left");
    }
}
