//! What EnvForge says about itself while it runs: traces on standard error, and metrics.
//!
//! Not here: audit. Who did what stands in the log; a trace may be lost and never holds a secret.

use std::io::IsTerminal as _;

use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tracing_subscriber::EnvFilter;

/// How lines on standard error look.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum LogFormat {
    Text,
    Json,
}

/// Installs the process's tracing subscriber and metrics recorder. Once per process.
pub(crate) fn install(filter: &str, format: LogFormat) -> anyhow::Result<PrometheusHandle> {
    let filter = EnvFilter::try_new(filter).map_err(|error| {
        anyhow::anyhow!("`{filter}` is not a log filter: {error}; for example `info,envforge_gateway=debug`")
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::stderr().is_terminal()).with_target(false).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(PrometheusBuilder::new().install_recorder()?)
}
