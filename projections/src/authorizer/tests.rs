//! Specifications of fresh decisions: waiting for the leader's word, refusing when it is missing.
