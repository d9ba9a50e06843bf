//! What one stream may do to the others on its connections, straight to an agent and through another process: nothing.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use envforge_agent::HostLine;
use envforge_domain::shell::{ShellEnd, ShellInput, ShellOutput};
use envforge_runtime::frame;
use serde_json::json;
use tokio::time::{Instant, timeout};

use super::relay::{connected, key, only, serving};
use super::*;

/// What one stream may hold that nobody has read yet, where the control plane reads.
const WINDOW: usize = 256 * 1024;
/// As a program that writes a single byte is passed on.
const BLOCK: [u8; 6] = [0, 0, 0, 0, 1, b'x'];
/// So many that single bytes cost a connection more than it would bear by itself.
const UNREAD: usize = 14;

/// `shell` writes single bytes for ever, once it is told to; the others are echoes.
fn programs_of_drips(written: &Arc<AtomicUsize>) -> StreamHandler {
    let written = Arc::clone(written);
    Arc::new(move |header, host| {
        if header.purpose != "shell" {
            let echo = StreamHeader { purpose: "echo".to_owned(), ..header.clone() };
            return programs()(&echo, host);
        }
        let written = Arc::clone(&written);
        Some(Box::new(move |mut stream: ByteStream| {
            Box::pin(async move {
                let _ = stream.read_u8().await;
                while stream.write_all(&BLOCK).await.is_ok() {
                    written.fetch_add(BLOCK.len(), Ordering::Relaxed);
                }
            })
        }))
    })
}

async fn echoes(stream: &mut ByteStream) {
    stream.write_all(b"typed").await.unwrap();
    let mut echoed = [0; 5];
    timeout(DEADLINE, stream.read_exact(&mut echoed)).await.unwrap().unwrap();
    assert_eq!(&echoed, b"typed");
}

async fn dripping(line: &HostLine, count: usize) -> Vec<ByteStream> {
    let mut streams = Vec::new();
    for _ in 0..count {
        streams.push(line.open_stream(header(1, "shell")).await.unwrap());
    }
    for stream in &mut streams {
        stream.write_u8(0).await.unwrap();
    }
    streams
}

#[tokio::test(flavor = "multi_thread")]
async fn single_bytes_that_nobody_reads_or_that_are_let_go_end_no_other_stream() {
    let line = Line::new().await;
    let (identity, local) = (line.enrolled(A_DAY).await, line.local_host().await);
    let (stop, written) = (CancellationToken::new(), Arc::<AtomicUsize>::default());
    let _running = tokio::spawn(line.agent_serving(&local, identity, programs_of_drips(&written)).run(stop.clone()));
    let (remote, _session) = line.connected().await;
    let ours = key(&line.dir.path().join("ours"));
    let (at, _ended) = serving(Arc::clone(&ours), only(Some(remote.line().clone()))).await;
    let (_connection, found) = connected(at, &ours).await;
    let mut straight = remote.line().open_stream(header(1, "job")).await.unwrap();
    let mut through = found.line(org(1)).open_stream(header(1, "job")).await.unwrap();
    for way in [remote.line(), &found.line(org(1))] {
        written.store(0, Ordering::Relaxed);
        let began = std::time::Instant::now();
        let mut unread = dripping(way, UNREAD).await;
        eventually("all that may wait to be read", 2 * DEADLINE, async || {
            echoes(&mut straight).await;
            echoes(&mut through).await;
            // But for what an answer took of it before.
            (written.load(Ordering::Relaxed) >= UNREAD * (WINDOW - 1024)).then_some(())
        })
        .await;
        println!("{} frames after {:?}", written.load(Ordering::Relaxed) / BLOCK.len(), began.elapsed());
        // Whoever reads at last finds all of it, and it goes on.
        let mut read = vec![0; 2 * WINDOW / BLOCK.len() * BLOCK.len()];
        timeout(DEADLINE, unread[0].read_exact(&mut read)).await.unwrap().unwrap();
        assert!(read.chunks(BLOCK.len()).all(|block| block == BLOCK));
        drop(unread);

        for _ in 0..4 {
            let mut many = dripping(way, 100).await;
            for stream in &mut many {
                stream.read_exact(&mut [0; BLOCK.len()]).await.unwrap();
            }
            drop(many);
            echoes(&mut straight).await;
            echoes(&mut through).await;
        }
    }
    stop.cancel();
}

/// Writes output and an end, and is gone at once, as an agent that has waited long enough for it to be read.
fn program_that_ends(size: &Arc<AtomicUsize>, gone: &Arc<AtomicBool>) -> StreamHandler {
    let (size, gone) = (Arc::clone(size), Arc::clone(gone));
    Arc::new(move |_, _| {
        let (size, gone) = (Arc::clone(&size), Arc::clone(&gone));
        Some(Box::new(move |mut stream: ByteStream| {
            Box::pin(async move {
                frame::expect_call::<serde_json::Value, _>(&mut stream).await.unwrap();
                let opened = json!({ "answer": "opened", "lasting": false, "notice": null, "host_key": null });
                frame::write(&mut stream, &opened).await.unwrap();
                let over = json!({ "end": "exited", "code": 7 }).to_string().into_bytes();
                let chunks = vec![(0, vec![b'x'; CHUNK]); size.load(Ordering::Relaxed) / CHUNK];
                for (kind, bytes) in chunks.into_iter().chain([(3, over)]) {
                    stream.write_u8(kind).await.unwrap();
                    stream.write_u32(u32::try_from(bytes.len()).unwrap()).await.unwrap();
                    stream.write_all(&bytes).await.unwrap();
                }
                stream.shutdown().await.unwrap();
                drop(stream);
                gone.store(true, Ordering::Relaxed);
            })
        }))
    })
}

const CHUNK: usize = 50_000;

#[tokio::test(flavor = "multi_thread")]
async fn the_last_of_an_output_and_its_end_reach_a_client_that_goes_on_typing() {
    let line = Line::new().await;
    let (identity, local) = (line.enrolled(A_DAY).await, line.local_host().await);
    let (stop, size, gone) = (CancellationToken::new(), Arc::<AtomicUsize>::default(), Arc::<AtomicBool>::default());
    let program = program_that_ends(&size, &gone);
    let _running = tokio::spawn(line.agent_serving(&local, identity, program).run(stop.clone()));
    let (remote, _session) = line.connected().await;
    let ours = key(&line.dir.path().join("ours"));
    let (at, _ended) = serving(Arc::clone(&ours), only(Some(remote.line().clone()))).await;
    let (_connection, found) = connected(at, &ours).await;
    // More than the client's side takes in by itself, and no more than the agent gets rid of.
    for (way, bytes) in [(remote.line(), 8 * CHUNK), (&found.line(org(1)), 15 * CHUNK)] {
        size.store(bytes, Ordering::Relaxed);
        gone.store(false, Ordering::Relaxed);
        let mut open = way.run_job(job(1), BTreeMap::new()).await.unwrap();
        let (mut read, begun) = (0, Instant::now());
        // What fits on the way lies there unread when the program ends; how much that is depends on how it was cut.
        while !gone.load(Ordering::Relaxed) {
            assert!(begun.elapsed() < DEADLINE, "the program does not end");
            tokio::time::sleep(Duration::from_millis(500)).await; // pause: it is taken in as far as it goes
            if !gone.load(Ordering::Relaxed)
                && let Some(ShellOutput::Out(chunk)) = timeout(DEADLINE, open.output.recv()).await.unwrap()
            {
                read += chunk.len();
            }
        }
        for _ in 0..16 {
            tokio::time::sleep(Duration::from_millis(20)).await; // pause: somebody types who has seen nothing yet
            let taken = timeout(DEADLINE, open.input.send(ShellInput::Data(b"y".to_vec()))).await;
            taken.expect("what nobody takes any more holds up nobody").unwrap();
        }
        let over = loop {
            match timeout(DEADLINE, open.output.recv()).await.unwrap() {
                Some(ShellOutput::Out(chunk)) => read += chunk.len(),
                over => break over,
            }
        };
        assert_eq!(read, bytes);
        assert_eq!(over, Some(ShellOutput::Over { end: ShellEnd::Exited, code: Some(7) }));
    }
    stop.cancel();
}
