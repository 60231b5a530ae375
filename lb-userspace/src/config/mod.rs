//! File -> spec. `file.rs` knows YAML, `spec.rs` knows what is valid, `error.rs` says what is wrong and how to mend it.

pub mod spec;
