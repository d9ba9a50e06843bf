//! Where the generations of a read model stand.
//!
//! INVARIANT: a checkpoint moves only from the position that its mover has folded up to, in the transaction of the rows.
//! Whoever finds it elsewhere has been fenced off and writes nothing.

use envforge_domain::commit::Position;
use envforge_eventlog::{Checkpoint, CheckpointProof, LogIdentity};

use super::database::{Database, DatabaseError, Transaction};
use super::projector::ModelName;
use super::statement::Statement;
use super::table::{columns, int, uint};

/// The live generation of a read model and how far it has come.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Standing {
    pub generation: i64,
    pub checkpoint: Checkpoint,
}

columns! {
    struct CheckpointRow {
        generation: i64,
        position: i64,
        log_identity: Option<String>,
        digest: Option<String>,
    }
}

impl TryFrom<CheckpointRow> for Standing {
    type Error = DatabaseError;

    fn try_from(row: CheckpointRow) -> Result<Self, DatabaseError> {
        let broken = |reason: &str| DatabaseError::Row { table: "read_model_checkpoints", reason: reason.into() };
        let proof = match (row.log_identity, row.digest) {
            (Some(identity), Some(digest)) => {
                let mut bytes = [0; 32];
                hex::decode_to_slice(digest, &mut bytes)
                    .map_err(|_| broken("`digest` is not 64 hexadecimal digits"))?;
                Some(CheckpointProof { identity: LogIdentity(identity), digest: bytes })
            }
            (None, None) => None,
            _ => return Err(broken("`log_identity` and `digest` must both be set")),
        };
        let checkpoint = Checkpoint { position: Position::new(uint(row.position)), proof };
        Ok(Self { generation: row.generation, checkpoint })
    }
}

const COLUMNS: &str = "SELECT c.generation, c.position, c.log_identity, c.digest FROM read_model_checkpoints AS c ";

fn live_statement(model: ModelName) -> Statement {
    Statement::new(COLUMNS)
        .push("JOIN read_models AS m ON m.name = c.read_model AND m.generation = c.generation WHERE m.name = ")
        .bind(model.stored_name())
}

fn none_live(model: ModelName) -> DatabaseError {
    DatabaseError::Row { table: "read_models", reason: format!("`{model}` has no live generation") }
}

pub(crate) async fn live(database: &Database, model: ModelName) -> Result<Standing, DatabaseError> {
    let row: Option<CheckpointRow> = database.fetch_optional(live_statement(model)).await?;
    row.ok_or_else(|| none_live(model))?.try_into()
}

/// The same within a transaction.
pub(crate) async fn live_in(transaction: &mut Transaction, model: ModelName) -> Result<Standing, DatabaseError> {
    let rows: Vec<CheckpointRow> = transaction.fetch_all(live_statement(model)).await?;
    rows.into_iter().next().ok_or_else(|| none_live(model))?.try_into()
}

/// Moves a generation's checkpoint and takes hold of it until the transaction ends. `false`: it is not where `from`
/// says, so somebody else folds this generation, or it is gone.
pub(crate) async fn advance(
    transaction: &mut Transaction,
    model: ModelName,
    generation: i64,
    from: Position,
    to: &Checkpoint,
) -> Result<bool, DatabaseError> {
    let statement = Statement::new("UPDATE read_model_checkpoints SET position = ")
        .bind(int(to.position.get()))
        .push(", log_identity = ")
        .bind(to.proof.as_ref().map(|proof| proof.identity.0.clone()))
        .push(", digest = ")
        .bind(to.proof.as_ref().map(|proof| hex::encode(proof.digest)))
        .push(" WHERE read_model = ")
        .bind(model.stored_name())
        .push(" AND generation = ")
        .bind(generation)
        .push(" AND position = ")
        .bind(int(from.get()));
    Ok(transaction.execute(statement).await? == 1)
}

/// Takes hold of a generation's checkpoint until the transaction ends: nobody can fold it meanwhile. `false`: it is gone.
pub(crate) async fn hold(
    transaction: &mut Transaction,
    model: ModelName,
    generation: i64,
) -> Result<bool, DatabaseError> {
    let statement = Statement::new("UPDATE read_model_checkpoints SET position = position WHERE read_model = ")
        .bind(model.stored_name())
        .push(" AND generation = ")
        .bind(generation);
    Ok(transaction.execute(statement).await? == 1)
}

/// Takes hold of the read model's row until the transaction ends: no other generation is opened or switched to.
pub(crate) async fn hold_model(transaction: &mut Transaction, model: ModelName) -> Result<(), DatabaseError> {
    let statement = Statement::new("UPDATE read_models SET last_generation = last_generation WHERE name = ");
    transaction.execute(statement.bind(model.stored_name())).await?;
    Ok(())
}

/// Opens a new generation at the start of the log, and ends every other that is not live: an older rebuild of this
/// model is fenced off by that.
pub(crate) async fn open_generation(transaction: &mut Transaction, model: ModelName) -> Result<i64, DatabaseError> {
    let name = model.stored_name();
    let next = Statement::new("UPDATE read_models SET last_generation = last_generation + 1 WHERE name = ").bind(name);
    transaction.execute(next).await?;
    let number = Statement::new("SELECT last_generation FROM read_models WHERE name = ").bind(name);
    let numbers: Vec<(i64,)> = transaction.fetch_all(number).await?;
    let (generation,) = numbers.into_iter().next().ok_or_else(|| none_live(model))?;
    let others = Statement::new("DELETE FROM read_model_checkpoints WHERE read_model = ").bind(name);
    let others = others.push(" AND generation <> (SELECT generation FROM read_models WHERE name = ").bind(name);
    transaction.execute(others.push(")")).await?;
    let start = Statement::new("INSERT INTO read_model_checkpoints (read_model, generation, position) VALUES (");
    let start = start.bind(name).push(", ").bind(generation).push(", ").bind(0);
    transaction.execute(start.push(")")).await?;
    Ok(generation)
}

/// Lets all readers read `generation` from the end of this transaction on.
pub(crate) async fn switch(
    transaction: &mut Transaction,
    model: ModelName,
    generation: i64,
) -> Result<(), DatabaseError> {
    let name = model.stored_name();
    let switch = Statement::new("UPDATE read_models SET generation = ").bind(generation);
    transaction.execute(switch.push(" WHERE name = ").bind(name)).await?;
    let old = Statement::new("DELETE FROM read_model_checkpoints WHERE read_model = ").bind(name);
    transaction.execute(old.push(" AND generation <> ").bind(generation)).await?;
    Ok(())
}
