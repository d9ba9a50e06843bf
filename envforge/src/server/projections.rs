//! `envforge projections`: how far the read models are, and rebuilding one beside the live one.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Args, Subcommand};
use envforge_eventlog::SharedLog;
use envforge_eventlog::sqlite::SqliteLog;
use envforge_identity::credentials::Credentials;
use envforge_projections::sql::rebuild::rebuild;
use envforge_projections::sql::{Comparison, Database, ModelName, RebuildProgress, Rebuilt};
use indicatif::{ProgressBar, ProgressStyle};
use serde_json::json;

use super::data_dir::DataDir;
use super::serve::StoreArgs;
use super::telemetry::{self, LogFormat};
use super::usable;
use crate::cli::output::Output;

/// Between two lines of progress where nobody watches a bar.
const PROGRESS_INTERVAL: Duration = Duration::from_secs(3);

/// Look after the SQL read models.
#[derive(Args, Debug)]
pub(crate) struct ProjectionsArgs {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Subcommand, Debug)]
enum Verb {
    /// Position of each read model and of the log.
    Ls(#[command(flatten)] Place),
    /// Fold the whole log into a new copy of a read model, compare it with the live one and switch readers to it.
    Rebuild {
        /// directory, audit, meter or command_ids
        name: String,
        #[command(flatten)]
        place: Place,
    },
}

/// Which control plane: `dev`'s embedded stores, or NATS and PostgreSQL.
#[derive(Args, Debug)]
pub(super) struct Place {
    /// Data directory of `envforge dev`, which must not be running. Default: this user's.
    #[arg(long, value_name = "DIR", env = "ENVFORGE_DATA", conflicts_with = "nats")]
    data: Option<PathBuf>,
    /// NATS servers of the log.
    #[arg(long, value_name = "URL", value_delimiter = ',', env = "ENVFORGE_NATS_URL", requires = "database_url_file")]
    nats: Vec<String>,
    /// Credentials file for NATS.
    #[arg(long, value_name = "FILE", env = "ENVFORGE_NATS_CREDENTIALS")]
    nats_credentials: Option<PathBuf>,
    /// File with the PostgreSQL URL.
    #[arg(long, value_name = "FILE", env = "ENVFORGE_DATABASE_URL_FILE")]
    database_url_file: Option<PathBuf>,
}

impl Place {
    pub(super) async fn open(&self, what: &str) -> anyhow::Result<(SharedLog, Database)> {
        if let Some(stores) = self.stores() {
            return Ok((stores.log(what).await?, stores.database().await?));
        }
        let data = self.data_dir()?;
        let log: SharedLog = Arc::new(SqliteLog::open(envforge_eventlog::sqlite::Config::new(data.log())).await?);
        Ok((log, Database::connect_sqlite(&data.read_models()).await?))
    }

    /// The credential table of the same control plane.
    pub(super) async fn credentials(&self) -> anyhow::Result<Credentials> {
        match self.stores() {
            Some(stores) => stores.credentials().await,
            None => Ok(Credentials::open_sqlite(&self.data_dir()?.credentials()).await?),
        }
    }

    /// `None`: `dev`'s embedded stores.
    fn stores(&self) -> Option<StoreArgs> {
        let stores =
            || StoreArgs::for_tools(self.nats.clone(), self.nats_credentials.clone(), self.database_url_file.clone());
        (!self.nats.is_empty()).then(stores)
    }

    fn data_dir(&self) -> anyhow::Result<DataDir> {
        Ok(DataDir::open(&match &self.data {
            Some(path) => path.clone(),
            None => DataDir::default_path()?,
        })?)
    }
}

pub(crate) async fn run(args: ProjectionsArgs, output: Output) -> anyhow::Result<()> {
    telemetry::install("warn", LogFormat::Text)?;
    match args.verb {
        Verb::Ls(place) => {
            let (log, database) = place.open("projections").await?;
            let head = log.head().await?.position;
            for model in ModelName::ALL {
                let position = database.position(model).await?;
                let line = json!({ "name": model.to_string(), "position": position.get(), "log": head.get() });
                let text = || format!("{:<14} {:>12} of {:>12}", model.to_string(), position.get(), head.get());
                output.last_event(&line, text)?;
            }
            Ok(())
        }
        Verb::Rebuild { name, place } => {
            let model: ModelName = usable("the read model", name.parse())?;
            let (log, database) = place.open("projections").await?;
            let mut progress = Progress::of(model, &output)?;
            let rebuilt = rebuild(&log, &database, model, |at| progress.tell(at)).await?;
            progress.finish();
            output.last_event(&json(&rebuilt), || text(&rebuilt))?;
            Ok(())
        }
    }
}

fn json(rebuilt: &Rebuilt) -> serde_json::Value {
    let mut json = json!({
        "name": rebuilt.model.to_string(),
        "generation": rebuilt.generation,
        "switched_at": rebuilt.switched_at.get(),
        "unchanged": rebuilt.unchanged(),
    });
    match &rebuilt.comparison {
        Comparison::Compared { at, .. } => json["compared_at"] = at.get().into(),
        Comparison::OfAnotherLog { why, .. } => json["another_log"] = why.to_string().into(),
    }
    json
}

fn text(rebuilt: &Rebuilt) -> String {
    let verdict = match &rebuilt.comparison {
        Comparison::Compared { old, new, .. } if old == new => "the rows are the same".to_owned(),
        Comparison::Compared { .. } => "the rows have changed".to_owned(),
        Comparison::OfAnotherLog { why, .. } => {
            format!("they replace rows of a log that is not this one: {why}")
        }
    };
    format!("Rebuilt {} up to position {}: {verdict}.", rebuilt.model, rebuilt.switched_at)
}

/// Shows how far a rebuild has come, on standard error: a bar where somebody watches, now and then a line elsewhere.
enum Progress {
    Bar(ProgressBar),
    Lines { model: ModelName, told: Option<Instant> },
    Silent,
}

impl Progress {
    fn of(model: ModelName, output: &Output) -> anyhow::Result<Self> {
        if output.json {
            return Ok(Self::Silent);
        }
        if !output.live {
            return Ok(Self::Lines { model, told: None });
        }
        let style = ProgressStyle::with_template("{msg} {wide_bar} {human_pos}/{human_len} commits, {eta} left")?;
        Ok(Self::Bar(ProgressBar::new(0).with_style(style).with_message(format!("Rebuilding {model}"))))
    }

    fn tell(&mut self, progress: RebuildProgress) {
        match self {
            Self::Bar(bar) => {
                bar.set_length(progress.target.get());
                bar.set_position(progress.position.get());
            }
            Self::Lines { model, told } => {
                if told.is_none_or(|told| told.elapsed() >= PROGRESS_INTERVAL) {
                    *told = Some(Instant::now());
                    eprintln!("Rebuilding {model}: {} of {} commits", progress.position, progress.target);
                }
            }
            Self::Silent => {}
        }
    }

    fn finish(self) {
        if let Self::Bar(bar) = self {
            bar.finish_and_clear();
        }
    }
}
