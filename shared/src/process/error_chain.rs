//! An error in one line, with its causes.

use std::error::Error;

/// The error's text and those of its causes, each once.
///
/// Many errors omit the cause («client error (Connect)», «error sending request»), and many repeat it.
pub fn error_chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let words = cause.to_string();
        if !text.contains(&words) {
            text = format!("{text}: {words}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_cause_is_named_once() {
        let refused = std::io::Error::from(std::io::ErrorKind::ConnectionRefused);
        let error = kube::Error::Service(Box::new(refused));
        assert_eq!(error_chain(&error), "ServiceError: connection refused");
    }
}
