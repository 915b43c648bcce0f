//! What `fuzz/` feeds with bytes, one function a target: each plays a peer that writes whatever the
//! bytes say, and checks what our side makes of it.
//!
//! The functions are also run by plain tests, on random bytes and on the corpora that fuzzing left.

pub use crate::forkserver::fuzz_messages as messages;
pub use crate::transport::fuzzing::{blob, claim_word, host_reads, parcel, records, worker_reads};

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::path::Path;

    type Target = fn(&[u8]);

    const TARGETS: [(&str, Target); 7] = [
        ("blob", blob),
        ("claim_word", claim_word),
        ("host_reads", host_reads),
        ("messages", messages),
        ("parcel", parcel),
        ("records", records),
        ("worker_reads", worker_reads),
    ];

    #[test]
    fn what_fuzzing_found_stays_found() {
        for (name, target) in TARGETS {
            let corpus = Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus").join(name);
            let mut inputs: Vec<_> =
                std::fs::read_dir(&corpus).unwrap().map(|entry| entry.unwrap().path()).collect();
            inputs.sort();
            assert!(!inputs.is_empty(), "no corpus in {}", corpus.display());
            for input in inputs {
                target(&std::fs::read(&input).unwrap());
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_do_harm(bytes in prop::collection::vec(any::<u8>(), 0..400)) {
            for (_, target) in TARGETS {
                target(&bytes);
            }
        }
    }
}
