//! What EnvForge says about itself while it runs: traces on standard error, and metrics.
//!
//! Not here: audit. Who did what stands in the log; a trace may be lost and never holds a secret.

use std::io::IsTerminal as _;
use std::time::Duration;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

use crate::cli::failure::Failure;

/// How lines on standard error look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Between two foldings of what was measured. Without them every single measurement is kept until somebody asks.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Libraries whose finer traces hold the content of shells: never shown, whatever the filter says.
const CONTENT_CARRIERS: [&str; 3] = ["tungstenite", "tokio_tungstenite", "russh"];

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
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        Failure::usage(format!("`{filter}` is not a log filter: {error}"), "for example `info,envforge_gateway=debug`")
    })?;
    // What these carry is what people type and see. They would tell it word by word.
    let filter = CONTENT_CARRIERS.iter().fold(filter, |filter, target| {
        let no_content = format!("{target}=info").parse().expect("the directive is a literal");
        filter.add_directive(no_content)
    });
    // Standard error may be a terminal that was closed; then nothing is left to say anything to.
    let builder =
        tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).log_internal_errors(false);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
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
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

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
