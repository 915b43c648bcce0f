//! The bridge to Python's `logging`, once there is somebody to listen.
//!
//! Importing `logging` takes about as long as starting a worker, and a program that has not imported it
//! has set up no handler. Only errors are worth the import.

use std::sync::OnceLock;

use log::{Level, LevelFilter, Log, Metadata, Record};
use pyo3::prelude::*;
use pyo3_log::{Caching, Logger};

use super::leaving::call_out;

#[derive(Debug, Default)]
struct Bridge {
    logger: OnceLock<Logger>,
}

/// Sends what this crate logs to Python. Another logger in this process (there is only one per crate)
/// would be a second module init, as in a subinterpreter; the first one stays.
pub fn install() {
    if log::set_boxed_logger(Box::<Bridge>::default()).is_ok() {
        log::set_max_level(LevelFilter::Debug);
    }
}

impl Bridge {
    fn logger(&self, level: Level) -> Option<&Logger> {
        if self.logger.get().is_none() {
            let logger = Python::attach(|py| {
                let is_used = || py.import("sys")?.getattr("modules")?.contains("logging");
                if level > Level::Warn && !is_used().unwrap_or(false) {
                    return None;
                }
                Logger::new(py, Caching::LoggersAndLevels).ok()
            })?;
            // Another thread may have been quicker.
            let _ = self.logger.set(logger);
        }
        self.logger.get()
    }
}

impl Log for Bridge {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        self.logger(metadata.level()).is_some_and(|logger| logger.enabled(metadata))
    }

    fn log(&self, record: &Record<'_>) {
        if let Some(logger) = self.logger(record.level()) {
            call_out(|| logger.log(record));
        }
    }

    fn flush(&self) {}
}
