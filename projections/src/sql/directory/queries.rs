//! Questions to the directory. Lists are sorted by id, which is by creation; the cursor is the last id of a page.

use std::collections::BTreeMap;

use envforge_domain::ids::{HostId, LinkId, OrgId, ProjectId, TeamId, UserId, WorkspaceId};
use envforge_domain::slug::{OrgSlug, ProjectSlug, WorkspaceSlug};

use super::super::database::{Database, DatabaseError};
use super::super::page::{Limit, Page};
use super::super::statement::Statement;
use super::super::table::{Row, columns, uint};
use super::records::{
    HostRecord, LinkPhase, LinkRecord, MemberGrant, MemberRecord, OrganizationRecord, ProjectRecord, Reader,
    RuntimePhase, RuntimeRecord, UserRecord, WorkspaceRecord, instant, team,
};
use super::rows::{HostRow, LinkRow, MemberRow, OrganizationRow, ProjectRow, RuntimeRow, UserRow, WorkspaceRow};

/// INVARIANT: a scalar subquery, so that one statement reads one generation, whenever a rebuild switches.
const LIVE: &str = "(SELECT generation FROM read_models WHERE name = 'directory')";

/// Queries of the directory.
#[derive(Debug)]
pub struct Directory<'a> {
    database: &'a Database,
}

/// Which workspaces to list. Everything `None`: all of the organization.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct WorkspaceFilter {
    /// Only of these projects, as where somebody's roles reach no further. At most 200 are looked at.
    pub projects: Option<Vec<ProjectId>>,
    pub archived: Option<bool>,
    pub phase: Option<RuntimePhase>,
}

/// Which links to list. Everything `None`: all of the organization.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkFilter {
    pub projects: Option<Vec<ProjectId>>,
    pub workspace: Option<WorkspaceId>,
    pub phase: Option<LinkPhase>,
}

const PROJECTS_MAX: usize = 200;

columns! {
    struct MemberJoined {
        ..member: MemberRow,
        user_name: Option<String>,
        user_email: Option<String>,
        user_deactivated_at: Option<i64>,
    }
}

columns! {
    struct WorkspaceJoined {
        ..workspace: WorkspaceRow,
        project_slug: Option<String>,
        created_by_name: Option<String>,
    }
}

columns! {
    struct LinkJoined {
        ..link: LinkRow,
        workspace_slug: Option<String>,
        issued_by_name: Option<String>,
    }
}

/// `SELECT` all columns of a table as `t`, `more`, `FROM` it.
fn select(columns: &str, more: &str, table: &str) -> Statement {
    let columns = columns.split(", ").map(|column| format!("t.{column}")).collect::<Vec<_>>().join(", ");
    Statement::new(format!("SELECT {columns}{more} FROM {table} AS t "))
}

fn of<R: Row>() -> Statement {
    select(&R::TABLE.column_list(), "", R::TABLE.name)
}

fn live() -> String {
    format!("WHERE t.generation = {LIVE}")
}

fn page_of(statement: Statement, after: Option<&str>, limit: Limit) -> Statement {
    statement.bind_some(" AND t.id > ", after).push(" ORDER BY t.id LIMIT ").bind(limit.probe())
}

fn in_projects(statement: Statement, projects: Option<&[ProjectId]>) -> Statement {
    match projects {
        Some(projects) => {
            let ids = projects.iter().take(PROJECTS_MAX).map(ToString::to_string);
            statement.push(" AND ").bind_in("t.project", ids)
        }
        None => statement,
    }
}

impl<'a> Directory<'a> {
    pub(in super::super) fn new(database: &'a Database) -> Self {
        Self { database }
    }

    async fn one<R: Row, T: TryFrom<R, Error = DatabaseError>>(
        &self,
        statement: Statement,
    ) -> Result<Option<T>, DatabaseError> {
        self.database.fetch_optional::<R>(statement).await?.map(T::try_from).transpose()
    }

    async fn page<R: Row, T: TryFrom<R, Error = DatabaseError>>(
        &self,
        statement: Statement,
        limit: Limit,
        id: impl Fn(&T) -> String,
    ) -> Result<Page<T>, DatabaseError> {
        let rows = self.database.fetch_all::<R>(statement).await?;
        let items = rows.into_iter().map(T::try_from).collect::<Result<Vec<T>, _>>()?;
        Ok(Page::cut(items, limit, id))
    }

    pub async fn organization(&self, org: OrgId) -> Result<Option<OrganizationRecord>, DatabaseError> {
        let statement = of::<OrganizationRow>().push(&live()).push(" AND t.id = ").bind(org.to_string());
        self.one::<OrganizationRow, _>(statement).await
    }

    pub async fn organization_by_slug(&self, slug: &OrgSlug) -> Result<Option<OrganizationRecord>, DatabaseError> {
        let statement = of::<OrganizationRow>().push(&live()).push(" AND t.slug = ").bind(slug.as_str());
        self.one::<OrganizationRow, _>(statement).await
    }

    /// All organizations; with `member`, those to which a user belongs.
    pub async fn organizations(
        &self,
        member: Option<UserId>,
        after: Option<&str>,
        limit: Limit,
    ) -> Result<Page<OrganizationRecord>, DatabaseError> {
        let mut statement = of::<OrganizationRow>().push(&live());
        if let Some(user) = member {
            statement = statement
                .push(" AND t.id IN (SELECT m.org FROM directory_members AS m WHERE m.generation = ")
                .push(LIVE)
                .push(" AND m.is_member = 1 AND m.grantee = ")
                .bind(user.to_string())
                .push(")");
        }
        self.page::<OrganizationRow, _>(page_of(statement, after, limit), limit, |org: &OrganizationRecord| {
            org.id.to_string()
        })
        .await
    }

    /// Members with their roles and names, by the user's id.
    pub async fn members(
        &self,
        org: OrgId,
        after: Option<&str>,
        limit: Limit,
    ) -> Result<Page<MemberRecord>, DatabaseError> {
        let rows: Vec<MemberJoined> = self.database.fetch_all(Self::members_statement(org, after, limit)).await?;
        let read = Reader(MemberRow::TABLE.name);
        let member = |row: MemberJoined| {
            Ok::<_, DatabaseError>(MemberRecord {
                user: read.parse(&row.member.grantee)?,
                active: row.user_deactivated_at.is_none(),
                name: row.user_name,
                email: row.user_email,
                since: instant(row.member.since),
                grants: read.grants(&row.member.grants)?,
            })
        };
        let items = rows.into_iter().map(member).collect::<Result<Vec<_>, _>>()?;
        Ok(Page::cut(items, limit, |member| member.user.to_string()))
    }

    pub(in super::super) fn members_statement(org: OrgId, after: Option<&str>, limit: Limit) -> Statement {
        let more = ", u.name AS user_name, u.email AS user_email, u.deactivated_at AS user_deactivated_at";
        let statement = select(&MemberRow::TABLE.column_list(), more, MemberRow::TABLE.name)
            .push("LEFT JOIN directory_users AS u ON u.generation = t.generation AND u.id = t.grantee ")
            .push(&live())
            .push(" AND t.is_member = 1 AND t.org = ")
            .bind(org.to_string());
        let cursor = after.map(|user| format!("{org}/{user}"));
        page_of(statement, cursor.as_deref(), limit)
    }

    /// Grants of the teams of an organization. One page holds all: teams are few.
    pub async fn team_grants(&self, org: OrgId) -> Result<BTreeMap<TeamId, Vec<MemberGrant>>, DatabaseError> {
        let rows: Vec<MemberRow> = self.database.fetch_all(Self::team_grants_statement(org)).await?;
        let read = Reader(MemberRow::TABLE.name);
        let teams = rows.iter().filter_map(|row| Some((team(&row.grantee)?, row)));
        teams.map(|(team, row)| Ok((team, read.grants(&row.grants)?))).collect()
    }

    pub(in super::super) fn team_grants_statement(org: OrgId) -> Statement {
        let statement = of::<MemberRow>().push(&live()).push(" AND t.is_member = 0 AND t.org = ").bind(org.to_string());
        page_of(statement, None, Limit::MAX)
    }

    pub async fn user(&self, user: UserId) -> Result<Option<UserRecord>, DatabaseError> {
        let statement = of::<UserRow>().push(&live()).push(" AND t.id = ").bind(user.to_string());
        self.one::<UserRow, _>(statement).await
    }

    pub async fn users(
        &self,
        org: OrgId,
        after: Option<&str>,
        limit: Limit,
    ) -> Result<Page<UserRecord>, DatabaseError> {
        let statement = of::<UserRow>().push(&live()).push(" AND t.org = ").bind(org.to_string());
        self.page::<UserRow, _>(page_of(statement, after, limit), limit, |user: &UserRecord| user.id.to_string()).await
    }

    pub async fn project(&self, org: OrgId, project: ProjectId) -> Result<Option<ProjectRecord>, DatabaseError> {
        let statement = of::<ProjectRow>().push(&live()).push(" AND t.id = ").bind(project.to_string());
        self.one::<ProjectRow, _>(statement.push(" AND t.org = ").bind(org.to_string())).await
    }

    pub async fn project_by_slug(
        &self,
        org: OrgId,
        slug: &ProjectSlug,
    ) -> Result<Option<ProjectRecord>, DatabaseError> {
        let statement = of::<ProjectRow>().push(&live()).push(" AND t.org = ").bind(org.to_string());
        self.one::<ProjectRow, _>(statement.push(" AND t.slug = ").bind(slug.as_str())).await
    }

    /// Projects of an organization; with `only`, those of them (at most 200 are looked at).
    pub async fn projects(
        &self,
        org: OrgId,
        only: Option<&[ProjectId]>,
        after: Option<&str>,
        limit: Limit,
    ) -> Result<Page<ProjectRecord>, DatabaseError> {
        let mut statement = of::<ProjectRow>().push(&live()).push(" AND t.org = ").bind(org.to_string());
        if let Some(only) = only {
            let ids = only.iter().take(PROJECTS_MAX).map(ToString::to_string);
            statement = statement.push(" AND ").bind_in("t.id", ids);
        }
        let statement = page_of(statement, after, limit);
        self.page::<ProjectRow, _>(statement, limit, |project: &ProjectRecord| project.id.to_string()).await
    }

    fn workspace_statement() -> Statement {
        let more = ", p.slug AS project_slug, u.name AS created_by_name";
        select(&WorkspaceRow::TABLE.column_list(), more, WorkspaceRow::TABLE.name)
            .push("LEFT JOIN directory_projects AS p ON p.generation = t.generation AND p.id = t.project ")
            .push("LEFT JOIN directory_users AS u ON u.generation = t.generation AND u.id = t.created_by ")
            .push("LEFT JOIN directory_runtimes AS r ON r.generation = t.generation AND r.id = t.id ")
            .push(&live())
    }

    async fn workspace_where(&self, statement: Statement) -> Result<Option<WorkspaceRecord>, DatabaseError> {
        let Some(row) = self.database.fetch_optional::<WorkspaceJoined>(statement).await? else { return Ok(None) };
        let runtimes = self.runtimes(std::slice::from_ref(&row.workspace.id)).await?;
        workspace_record(row, runtimes).map(Some)
    }

    pub async fn workspace(
        &self,
        org: OrgId,
        workspace: WorkspaceId,
    ) -> Result<Option<WorkspaceRecord>, DatabaseError> {
        let statement = Self::workspace_statement().push(" AND t.id = ").bind(workspace.to_string());
        self.workspace_where(statement.push(" AND t.org = ").bind(org.to_string())).await
    }

    pub async fn workspace_by_slug(
        &self,
        org: OrgId,
        slug: &WorkspaceSlug,
    ) -> Result<Option<WorkspaceRecord>, DatabaseError> {
        let statement = Self::workspace_statement().push(" AND t.org = ").bind(org.to_string());
        self.workspace_where(statement.push(" AND t.slug = ").bind(slug.as_str())).await
    }

    /// Workspaces of an organization, each with its runtime.
    pub async fn workspaces(
        &self,
        org: OrgId,
        filter: &WorkspaceFilter,
        after: Option<&str>,
        limit: Limit,
    ) -> Result<Page<WorkspaceRecord>, DatabaseError> {
        let statement = Self::workspace_statement().push(" AND t.org = ").bind(org.to_string());
        let mut statement = in_projects(statement, filter.projects.as_deref());
        statement = match filter.archived {
            Some(true) => statement.push(" AND t.archived_at IS NOT NULL"),
            Some(false) => statement.push(" AND t.archived_at IS NULL"),
            None => statement,
        };
        // A runtime that was never woken is asleep.
        statement = statement.bind_some(" AND COALESCE(r.phase, 'asleep') = ", filter.phase.map(RuntimePhase::token));
        let rows: Vec<WorkspaceJoined> = self.database.fetch_all(page_of(statement, after, limit)).await?;
        let ids: Vec<String> = rows.iter().map(|row| row.workspace.id.clone()).collect();
        let mut runtimes = self.runtimes(&ids).await?;
        let record = |row: WorkspaceJoined| {
            let own = runtimes.remove_entry(&row.workspace.id).into_iter().collect();
            workspace_record(row, own)
        };
        let items = rows.into_iter().map(record).collect::<Result<Vec<_>, _>>()?;
        Ok(Page::cut(items, limit, |workspace| workspace.id.to_string()))
    }

    async fn runtimes(&self, workspaces: &[String]) -> Result<BTreeMap<String, RuntimeRecord>, DatabaseError> {
        if workspaces.is_empty() {
            return Ok(BTreeMap::new());
        }
        let statement = of::<RuntimeRow>().push(&live()).push(" AND ");
        let statement = statement.bind_in("t.id", workspaces.iter().map(String::as_str));
        let rows: Vec<RuntimeRow> = self.database.fetch_all(statement).await?;
        rows.into_iter().map(|row| Ok((row.id.clone(), runtime_record(row)?))).collect()
    }

    /// `None` before the first wake, and for a workspace of another organization.
    pub async fn runtime(&self, org: OrgId, workspace: WorkspaceId) -> Result<Option<RuntimeRecord>, DatabaseError> {
        let statement = of::<RuntimeRow>().push(&live()).push(" AND t.id = ").bind(workspace.to_string());
        let statement = statement.push(" AND t.org = ").bind(org.to_string());
        self.database.fetch_optional::<RuntimeRow>(statement).await?.map(runtime_record).transpose()
    }

    fn link_statement() -> Statement {
        let more = ", w.slug AS workspace_slug, u.name AS issued_by_name";
        select(&LinkRow::TABLE.column_list(), more, LinkRow::TABLE.name)
            .push("LEFT JOIN directory_workspaces AS w ON w.generation = t.generation AND w.id = t.workspace ")
            .push("LEFT JOIN directory_users AS u ON u.generation = t.generation AND u.id = t.issued_by ")
            .push(&live())
    }

    pub async fn link(&self, org: OrgId, link: LinkId) -> Result<Option<LinkRecord>, DatabaseError> {
        let statement = Self::link_statement().push(" AND t.id = ").bind(link.to_string());
        let statement = statement.push(" AND t.org = ").bind(org.to_string());
        self.database.fetch_optional::<LinkJoined>(statement).await?.map(link_record).transpose()
    }

    pub async fn links(
        &self,
        org: OrgId,
        filter: &LinkFilter,
        after: Option<&str>,
        limit: Limit,
    ) -> Result<Page<LinkRecord>, DatabaseError> {
        let statement = Self::link_statement().push(" AND t.org = ").bind(org.to_string());
        let statement = in_projects(statement, filter.projects.as_deref())
            .bind_some(" AND t.workspace = ", filter.workspace.map(|workspace| workspace.to_string()))
            .bind_some(" AND t.phase = ", filter.phase.map(LinkPhase::token));
        let rows: Vec<LinkJoined> = self.database.fetch_all(page_of(statement, after, limit)).await?;
        let items = rows.into_iter().map(link_record).collect::<Result<Vec<_>, _>>()?;
        Ok(Page::cut(items, limit, |link| link.id.to_string()))
    }

    /// For operators: hosts of an organization.
    pub async fn hosts(
        &self,
        org: OrgId,
        after: Option<&str>,
        limit: Limit,
    ) -> Result<Page<HostRecord>, DatabaseError> {
        let statement = of::<HostRow>().push(&live()).push(" AND t.org = ").bind(org.to_string());
        self.page::<HostRow, _>(page_of(statement, after, limit), limit, |host: &HostRecord| host.id.to_string()).await
    }

    /// For operators.
    pub async fn host(&self, host: HostId) -> Result<Option<HostRecord>, DatabaseError> {
        let statement = of::<HostRow>().push(&live()).push(" AND t.id = ").bind(host.to_string());
        self.one::<HostRow, _>(statement).await
    }
}

fn workspace_record(
    row: WorkspaceJoined,
    mut runtimes: BTreeMap<String, RuntimeRecord>,
) -> Result<WorkspaceRecord, DatabaseError> {
    let read = Reader(WorkspaceRow::TABLE.name);
    let WorkspaceJoined { workspace: row, project_slug, created_by_name } = row;
    Ok(WorkspaceRecord {
        id: read.parse(&row.id)?,
        org: read.parse(&row.org)?,
        project: read.parse(&row.project)?,
        project_slug,
        slug: read.parse(&row.slug)?,
        branch: row.branch,
        manifest: row.manifest,
        manifest_digest: row.manifest_digest,
        access_mode: read.access_mode(&row.access_mode)?,
        created_by: read.parse_some(row.created_by.as_deref())?,
        created_by_name,
        created_at: instant(row.created_at),
        archived_at: row.archived_at.map(instant),
        runtime: runtimes.remove(&row.id),
    })
}

fn runtime_record(row: RuntimeRow) -> Result<RuntimeRecord, DatabaseError> {
    let read = Reader(RuntimeRow::TABLE.name);
    Ok(RuntimeRecord {
        workspace: read.parse(&row.id)?,
        phase: read.token(&row.phase, RuntimePhase::from_token)?,
        stage: row.stage,
        epoch: uint(row.epoch),
        since: instant(row.since),
        wake_cause: read.cause(&row.wake_cause)?,
        sleep_cause: row.sleep_cause,
        queued_cause: row.queued_cause.as_deref().map(|text| read.cause(text)).transpose()?,
        failure: row.failure,
        ready_at: row.ready_at.map(instant),
        lease_until: row.lease_until.map(instant),
        keep_awake_until: row.keep_awake_until.map(instant),
        keep_awake_reason: row.keep_awake_reason,
        keep_awake_by: read.parse_some(row.keep_awake_by.as_deref())?,
        postponed: row.postponed,
        active_at: row.active_at.map(instant),
        open_streams: row.open_streams.map(uint),
        commit_hash: row.commit_hash,
        services: read.services(&row.services)?,
    })
}

fn link_record(row: LinkJoined) -> Result<LinkRecord, DatabaseError> {
    let read = Reader(LinkRow::TABLE.name);
    let LinkJoined { link: row, workspace_slug, issued_by_name } = row;
    Ok(LinkRecord {
        id: read.parse(&row.id)?,
        org: read.parse(&row.org)?,
        project: read.parse(&row.project)?,
        workspace: read.parse(&row.workspace)?,
        workspace_slug,
        service: read.parse(&row.service)?,
        phase: read.token(&row.phase, LinkPhase::from_token)?,
        families: read.families(&row.families)?,
        label: row.label,
        token_generation: read.u32(row.token_generation)?,
        issued_by: read.parse(&row.issued_by)?,
        issued_by_name,
        issued_at: instant(row.issued_at),
        expires_at: instant(row.expires_at),
        ended_at: row.ended_at.map(instant),
        revoke_reason: row.revoke_reason,
        wake_budget: row.wake_budget.map(|budget| read.u32(budget)).transpose()?,
        wakes_spent: read.u32(row.wakes_spent)?,
        first_used_at: row.first_used_at.map(instant),
        sessions_opened: uint(row.sessions_opened),
        blocked: read.json(&row.blocked)?,
        blocked_at: row.blocked_at.map(instant),
    })
}
