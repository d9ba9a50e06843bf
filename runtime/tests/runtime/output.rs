//! Output under a flood, and what the team reads of it.

use std::fs;
use std::os::unix::fs::PermissionsExt;

use envforge_runtime::OutputError;

use crate::fixture::*;

#[tokio::test]
async fn a_flood_stays_within_its_bounds_and_the_service_keeps_running() {
    let host = Host::configured(|config| {
        config.log_bytes_max = 256 * 1024;
        config.log_files_max = 3;
    })
    .await;
    let repository = Repository::with(&[]);
    // 300 MiB, then a last line, then on to other work.
    let command = "yes 'a line of a flood that nobody reads' | head -c 314572800; echo; echo the last line; \
                   echo done > \"$ENVFORGE_DATA_DIR/done\"; exec sleep 1000";
    host.wake(order(&repository, [service("app", command)])).await.unwrap();
    host.written(workspace(1), "done").await;
    let output = host.place(workspace(1)).join("output");
    let mut tail = Vec::new();
    let deadline = std::time::Instant::now() + PATIENCE;
    while tail.last().map(String::as_str) != Some("the last line") {
        assert!(std::time::Instant::now() < deadline, "{tail:?}");
        tail = host.host.tail_output(workspace(1), &name("app"), 3).await.unwrap();
    }
    assert_eq!(tail.len(), 3);
    assert_eq!(tail[0], "a line of a flood that nobody reads");
    let files: Vec<_> = fs::read_dir(output).unwrap().map(|entry| entry.unwrap()).collect();
    assert_eq!(files.len(), 3);
    for file in files {
        let metadata = file.metadata().unwrap();
        assert!(metadata.len() <= 256 * 1024, "{:?}: {}", file.file_name(), metadata.len());
        assert_eq!(metadata.permissions().mode() & 0o777, 0o600);
    }
    assert!(host.host.is_up(workspace(1), 1));
    host.host.shutdown().await;
}

#[tokio::test]
async fn both_streams_are_kept_in_order_and_over_a_sleep() {
    let (host, repository) = (Host::open().await, Repository::with(&[]));
    let mut order = order(&repository, [service("app", "echo one; echo two >&2; echo three; exec sleep 1000")]);
    for epoch in [1, 2] {
        order.epoch = epoch;
        host.wake(order.clone()).await.unwrap();
        let path = host.place(workspace(1)).join("output/app.log");
        eventually("the output arrives", || {
            fs::read_to_string(&path).is_ok_and(|text| text.lines().count() == 3 * usize::try_from(epoch).unwrap())
        })
        .await;
        host.host.sleep(workspace(1), epoch).await.unwrap();
    }
    let tail = host.host.tail_output(workspace(1), &name("app"), 4).await.unwrap();
    assert_eq!(tail, ["three", "one", "two", "three"]);
    let none = host.host.tail_output(workspace(1), &name("web"), 4).await;
    assert!(matches!(none, Err(OutputError::None { service }) if service == name("web")));
}
