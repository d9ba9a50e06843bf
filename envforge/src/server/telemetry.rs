//! What EnvForge says about itself while it runs: traces on standard error, and metrics.
//!
//! Not here: audit. Who did what stands in the log; a trace may be lost and never holds a secret.

use std::io::IsTerminal as _;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing::{Level, Metadata};
use tracing_subscriber::filter::filter_fn;
use tracing_subscriber::layer::SubscriberExt as _;
use tracing_subscriber::util::SubscriberInitExt as _;
use tracing_subscriber::{EnvFilter, Layer, Registry};

use crate::cli::failure::Failure;

/// How lines on standard error look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Between two foldings of what was measured. Without them every single measurement is kept until somebody asks.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// How the targets of libraries begin whose finer traces hold what they carry: content of shells, and of AWS's SDKs requests and
/// answers, which hold the values of secrets. How much of these they show differs from version to version, and with variables of the
/// environment (`LOG_SENSITIVE_BODIES`).
const CONTENT_CARRIERS: [&str; 4] = ["aws_", "russh", "tokio_tungstenite", "tungstenite"];

/// Installs the process's tracing subscriber and metrics recorder, and keeps the latter small. Once per process, within
/// its runtime.
pub(crate) fn install(filter: &str, format: LogFormat) -> anyhow::Result<PrometheusHandle> {
    trace(filter, format)?;
    let handle = PrometheusBuilder::new().install_recorder()?;
    let recorder = handle.clone();
    tokio::spawn(keep_up(UPKEEP_INTERVAL, move || recorder.run_upkeep()));
    Ok(handle)
}

/// For a process of ours that takes no settings of its own: a keeper.
pub(crate) fn trace_as_usual() {
    // Without traces it does what it is for all the same.
    let _ = trace("info", LogFormat::Json);
}

fn trace(filter: &str, format: LogFormat) -> anyhow::Result<()> {
    // Standard error may be a terminal that was closed; then nothing is left to say anything to.
    let lines = tracing_subscriber::fmt::layer().with_writer(std::io::stderr).log_internal_errors(false);
    let shown = tracing_subscriber::registry().with(shown(filter)?);
    match format {
        LogFormat::Text => shown.with(lines.with_ansi(std::io::stderr().is_terminal()).with_target(false)).init(),
        LogFormat::Json => shown.with(lines.json()).init(),
    }
    Ok(())
}

/// What a filter lets through, and never the finer traces of [`CONTENT_CARRIERS`]: a filter of its own beside it, since of the
/// directives of one filter the longest target counts, and one about spans goes before all targets.
fn shown(filter: &str) -> anyhow::Result<impl Layer<Registry> + Send + Sync + use<>> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::usage(format!("`{filter}` is not a log filter: {error}"), "for example `info,envforge_gateway=debug`")
    })?;
    Ok(filter.and_then(filter_fn(holds_no_content)))
}

fn holds_no_content(metadata: &Metadata<'_>) -> bool {
    let carries = CONTENT_CARRIERS.iter().any(|begin| metadata.target().starts_with(begin));
    *metadata.level() <= Level::INFO || !carries
}

async fn keep_up(every: Duration, fold: impl Fn()) {
    let mut tick = tokio::time::interval(every);
    tick.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
    loop {
        tick.tick().await;
        fold();
        metrics::counter!("envforge_metrics_upkeeps_total").increment(1);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};
    use std::sync::{Arc, Mutex};

    use tracing_subscriber::fmt::MakeWriter;

    use super::*;

    /// Everything that was said.
    #[derive(Clone, Default)]
    struct Captured(Arc<Mutex<Vec<u8>>>);

    impl Captured {
        fn text(&self) -> String {
            String::from_utf8_lossy(&self.0.lock().unwrap()).into_owned()
        }
    }

    impl std::io::Write for Captured {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    impl<'a> MakeWriter<'a> for Captured {
        type Writer = Self;

        fn make_writer(&'a self) -> Self {
            self.clone()
        }
    }

    /// What this thread says from now on, through the product's own filter, until the guard is dropped.
    fn captured(filter: &str) -> (Captured, tracing::subscriber::DefaultGuard) {
        let captured = Captured::default();
        let lines = tracing_subscriber::fmt::layer().with_writer(captured.clone());
        let subscriber = tracing_subscriber::registry().with(shown(filter).unwrap()).with(lines);
        (captured, subscriber.set_default())
    }

    #[test]
    fn no_filter_shows_what_libraries_carry() {
        for filter in [
            "trace",
            "info,aws_smithy_runtime::client::orchestrator=trace,tungstenite::protocol=trace,russh::client=trace",
            "info,[sent]=trace",
            "info,[sent{part=body}]=trace",
        ] {
            let (captured, _guard) = captured(filter);
            let sent = tracing::info_span!("sent", part = "body");
            sent.in_scope(|| {
                tracing::trace!(target: "aws_smithy_runtime::client::orchestrator", "a carried request");
                tracing::debug!(target: "aws_sigv4::http_request", "a carried token");
                tracing::trace!(target: "tungstenite::protocol", "a carried frame");
                tracing::debug!(target: "russh::client", "a carried packet");
                tracing::trace!(target: "envforge_gateway", "our own trace");
                tracing::warn!(target: "aws_config", "a library's warning");
            });
            let text = captured.text();
            assert!(!text.contains("carried"), "{filter}: {text}");
            assert!(text.contains("a library's warning"), "{filter}: {text}");
            assert_eq!(text.contains("our own trace"), !filter.contains("aws_"), "{filter}: {text}");
        }
    }

    /// Against the real SDKs: what they would tell, and that it does not come through.
    #[cfg(feature = "aws")]
    mod moto {
        use envforge_aws::{AwsConfig, AwsCredentials, SsmConfig, SsmStore};
        use envforge_domain::commit::Position;
        use envforge_domain::ids::{CommandId, OrgId, ProjectId};
        use envforge_domain::secret::Secret;
        use envforge_domain::secrets::{PinnedSecret, SecretKey, SecretOwner};
        use envforge_domain::time::UnixMillis;
        use envforge_runtime::secret_store::{LogMark, PutNote, SecretStore as _};
        use envforge_testkit::Moto;

        use super::*;

        const VALUE: &str = "a-value-that-nobody-may-see";
        /// What they say with each request, and with what they show of it.
        const SENT: &str = "transmitting request";
        const CREDENTIAL: &str = "a-credential-that-nobody-may-see";

        /// Puts the value, and reads it back.
        async fn put_and_read(moto: &Moto) {
            let credentials =
                AwsCredentials::Fixed { id: "test".to_owned(), secret: Secret::new(CREDENTIAL.to_owned()) };
            let aws = AwsConfig { endpoint: Some(moto.endpoint()), credentials, ..AwsConfig::in_region(Moto::REGION) };
            let (key, deployment) = (Some(moto.key()), "test".parse().unwrap());
            let config = SsmConfig { aws, deployment, key, key_of: Default::default() };
            let store = SsmStore::open(config).await.unwrap();
            let owner = SecretOwner::Project(ProjectId::from_uuid(uuid::Uuid::from_u128(1)));
            let org = OrgId::from_uuid(uuid::Uuid::from_u128(2));
            let key = SecretKey { org, owner, name: "TOKEN".parse().unwrap(), generation: 1 };
            let log = LogMark { position: Position::START, identity: "log".to_owned(), digest: [1; 32] };
            let note = PutNote { command: CommandId::from_uuid(uuid::Uuid::from_u128(3)), at: UnixMillis::new(1), log };
            let version = store.put(&key, &Secret::new(VALUE.to_owned()), &note).await.unwrap();
            let read = store.read(&[PinnedSecret { key, version }]).await.unwrap_or_default();
            assert_eq!(read.first().map(Secret::expose), Some(VALUE));
        }

        #[tokio::test]
        async fn the_finest_trace_holds_no_value_of_ssms_and_no_credential() {
            let moto = Moto::start();
            let (shown, guard) = captured("trace");
            tracing::trace!("a decoy");
            put_and_read(&moto).await;
            drop(guard);
            let text = shown.text();
            assert!(text.contains("a decoy"), "the finest traces are captured: {text}");
            for hidden in [VALUE, CREDENTIAL, SENT] {
                assert!(!text.contains(hidden), "{hidden} in {text}");
            }
        }

        /// Without the filter beside: what the test above would find. Which part of a request they show is theirs to change.
        #[tokio::test]
        async fn the_sdks_do_tell_what_they_send() {
            let moto = Moto::start();
            let told = Captured::default();
            let lines = tracing_subscriber::fmt::layer().with_writer(told.clone()).with_ansi(false);
            let guard = tracing_subscriber::registry().with(EnvFilter::new("trace")).with(lines).set_default();
            put_and_read(&moto).await;
            drop(guard);
            let text = told.text();
            assert!(text.contains(SENT), "the SDKs tell no request any more, and the test above shows less: {text}");
        }
    }

    #[tokio::test]
    async fn what_was_measured_is_folded_again_and_again_though_nobody_asks() {
        let folded = Arc::new(AtomicU32::new(0));
        let counter = Arc::clone(&folded);
        let task = tokio::spawn(keep_up(Duration::from_millis(1), move || {
            counter.fetch_add(1, Ordering::Relaxed);
        }));
        envforge_testkit::eventually("three foldings", Duration::from_secs(10), async || {
            (folded.load(Ordering::Relaxed) >= 3).then_some(())
        })
        .await;
        task.abort();
    }
}
