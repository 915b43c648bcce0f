//! The one map from our errors to Python's.

use pyo3::import_exception;
use pyo3::prelude::*;

use crate::error::Error;

import_exception!(killercall._exceptions, WorkerStartError);

impl From<Error> for PyErr {
    fn from(error: Error) -> Self {
        let errno = error.source_error().raw_os_error();
        WorkerStartError::new_err((format!("failed to {error}"), errno))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_error_reads_after_failed_to() {
        let error = Error::System { step: "make a pipe", source: std::io::Error::from_raw_os_error(24) };
        assert!(format!("failed to {error}").starts_with("failed to make a pipe: "));
        assert_eq!(Some(24), error.source_error().raw_os_error());
    }
}
