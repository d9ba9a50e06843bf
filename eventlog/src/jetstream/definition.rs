//! How the stream must be set up so that it can be a log, and what of an existing one is refused.

use std::collections::HashMap;
use std::time::Duration;

use async_nats::jetstream::stream::{
    Compression, Config, DiscardPolicy, PersistenceMode, RetentionPolicy, StorageType,
};
use envforge_domain::limits::COMMIT_BYTES_MAX;

/// Metadata of the stream.
pub(super) const IDENTITY: &str = "envforge.identity";
pub(super) const FORMAT: &str = "envforge.format";
/// Raised when an older EnvForge could not work with the stream any more.
pub(super) const FORMAT_CURRENT: &str = "1";

/// Room for our headers beside the largest commit.
const HEADER_BYTES_MAX: usize = 4 * 1024;
pub(super) const MESSAGE_BYTES_MAX: usize = COMMIT_BYTES_MAX + HEADER_BYTES_MAX;

/// The stream as we make it, with a new identity.
pub(super) fn wanted(name: &str, subject_prefix: &str, replicas: usize) -> Config {
    let identity = hex::encode(rand::random::<[u8; 16]>());
    Config {
        name: name.to_owned(),
        description: Some("EnvForge's event log. Never delete, purge or edit it.".to_owned()),
        subjects: vec![format!("{subject_prefix}.>")],
        retention: RetentionPolicy::Limits,
        discard: DiscardPolicy::New,
        storage: StorageType::File,
        num_replicas: replicas,
        max_bytes: -1,
        max_messages: -1,
        max_messages_per_subject: -1,
        max_consumers: -1,
        max_message_size: i32::try_from(MESSAGE_BYTES_MAX).unwrap_or(i32::MAX),
        duplicate_window: Duration::from_secs(120),
        deny_delete: true,
        deny_purge: true,
        allow_direct: true,
        allow_atomic_publish: true,
        compression: Some(Compression::S2),
        metadata: HashMap::from([(IDENTITY.to_owned(), identity), (FORMAT.to_owned(), FORMAT_CURRENT.to_owned())]),
        ..Config::default()
    }
}

/// What makes an existing stream unfit: each with what it is and what it must be. Empty where it is safe.
pub(super) fn unsafe_drift(found: &Config, wanted: &Config) -> Vec<String> {
    let mut drift = Vec::new();
    let mut must = |holds: bool, setting: &str, is: String, must_be: &str| {
        if !holds {
            drift.push(format!("`{setting}` is {is} and must be {must_be}"));
        }
    };
    let switches = [
        (found.deny_delete, true, "deny_delete"),
        (found.deny_purge, true, "deny_purge"),
        (found.allow_direct, true, "allow_direct"),
        (found.allow_atomic_publish, true, "allow_atomic"),
        (found.allow_rollup, false, "allow_rollup_hdrs"),
        (found.allow_message_ttl, false, "allow_msg_ttl"),
        (found.allow_message_schedules, false, "allow_msg_schedules"),
        (found.allow_message_counter, false, "allow_msg_counter"),
        (found.no_ack, false, "no_ack"),
        (found.sealed, false, "sealed"),
    ];
    let word = |on: bool| if on { "on" } else { "off" };
    for (is, must_be, setting) in switches {
        must(is == must_be, setting, word(is).to_owned(), word(must_be));
    }
    let debug = |value: &dyn std::fmt::Debug| format!("{value:?}").to_lowercase();
    must(found.subjects == wanted.subjects, "subjects", debug(&found.subjects), &debug(&wanted.subjects));
    must(found.storage == StorageType::File, "storage", debug(&found.storage), "file");
    must(found.retention == RetentionPolicy::Limits, "retention", debug(&found.retention), "limits");
    must(found.discard == DiscardPolicy::New, "discard", debug(&found.discard), "new");
    let replicas = format!("at least {}", wanted.num_replicas);
    must(found.num_replicas >= wanted.num_replicas, "num_replicas", found.num_replicas.to_string(), &replicas);
    let first = found.first_sequence.unwrap_or(0);
    must(first <= 1, "first_seq", first.to_string(), "unset");
    must(found.max_age.is_zero(), "max_age", debug(&found.max_age), "unlimited");
    must(found.max_messages <= 0, "max_msgs", found.max_messages.to_string(), "unlimited");
    let per_subject = found.max_messages_per_subject;
    must(per_subject <= 0, "max_msgs_per_subject", per_subject.to_string(), "unlimited");
    let size = found.max_message_size;
    let size_is_enough = size <= 0 || size >= wanted.max_message_size;
    must(size_is_enough, "max_msg_size", size.to_string(), &format!("at least {}", wanted.max_message_size));
    must(found.subject_transform.is_none(), "subject_transform", "set".to_owned(), "unset");
    must(found.mirror.is_none(), "mirror", "set".to_owned(), "unset");
    must(found.sources.as_ref().is_none_or(Vec::is_empty), "sources", "set".to_owned(), "unset");
    let persists_late = matches!(found.persist_mode, Some(PersistenceMode::Async));
    must(!persists_late, "persist_mode", "async".to_owned(), "default");
    must(found.metadata.contains_key(IDENTITY), "metadata", "without an identity".to_owned(), "EnvForge's own");
    let format = found.metadata.get(FORMAT).map_or("missing", String::as_str);
    must(format == FORMAT_CURRENT, FORMAT, format.to_owned(), FORMAT_CURRENT);
    drift
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_we_make_is_what_we_accept() {
        let wanted = wanted("LOG", "envforge", 3);
        assert_eq!(unsafe_drift(&wanted, &wanted), Vec::<String>::new());
    }

    #[test]
    fn harmless_differences_are_accepted() {
        let wanted = wanted("LOG", "envforge", 1);
        let found = Config {
            num_replicas: 3,
            compression: Some(Compression::None),
            max_bytes: 1 << 40,
            max_message_size: -1,
            description: None,
            duplicate_window: Duration::from_secs(600),
            ..wanted.clone()
        };
        assert_eq!(unsafe_drift(&found, &wanted), Vec::<String>::new());
    }

    #[test]
    fn each_unsafe_setting_is_named() {
        let wanted = wanted("LOG", "envforge", 3);
        for (setting, found) in [
            ("discard", Config { discard: DiscardPolicy::Old, ..wanted.clone() }),
            ("storage", Config { storage: StorageType::Memory, ..wanted.clone() }),
            ("num_replicas", Config { num_replicas: 1, ..wanted.clone() }),
            ("deny_delete", Config { deny_delete: false, ..wanted.clone() }),
            ("deny_purge", Config { deny_purge: false, ..wanted.clone() }),
            ("allow_atomic", Config { allow_atomic_publish: false, ..wanted.clone() }),
            ("max_age", Config { max_age: Duration::from_secs(1), ..wanted.clone() }),
            ("max_msgs", Config { max_messages: 10, ..wanted.clone() }),
            ("max_msgs_per_subject", Config { max_messages_per_subject: 1, ..wanted.clone() }),
            ("max_msg_size", Config { max_message_size: 1_000, ..wanted.clone() }),
            ("allow_rollup_hdrs", Config { allow_rollup: true, ..wanted.clone() }),
            ("persist_mode", Config { persist_mode: Some(PersistenceMode::Async), ..wanted.clone() }),
            ("first_seq", Config { first_sequence: Some(10), ..wanted.clone() }),
            ("subjects", Config { subjects: vec!["other.>".to_owned()], ..wanted.clone() }),
            ("metadata", Config { metadata: HashMap::new(), ..wanted.clone() }),
        ] {
            let drift = unsafe_drift(&found, &wanted);
            assert!(drift.iter().any(|text| text.contains(&format!("`{setting}`"))), "{setting}: {drift:?}");
        }
    }
}
