//! From names and ids to resources: what a request is about, in memory, as the log has it now.
//!
//! Not here: what people read about these things (the SQL read models).

use ahash::AHashMap;
use envforge_domain::access::Resource;
use envforge_domain::commit::Recorded;
use envforge_domain::dev_link::DevLinkEvent;
use envforge_domain::event::Event;
use envforge_domain::ids::{LinkId, OrgId, ProjectId, WorkspaceId};
use envforge_domain::project::ProjectEvent;
use envforge_domain::slug::{ProjectSlug, WorkspaceSlug};
use envforge_domain::workspace::WorkspaceEvent;
use parking_lot::RwLock;

/// The view.
#[derive(Default)]
pub struct ResourceView {
    inner: RwLock<Inner>,
}

#[derive(Default)]
struct Inner {
    projects: AHashMap<ProjectId, OrgId>,
    project_by_slug: AHashMap<(OrgId, ProjectSlug), ProjectId>,
    workspaces: AHashMap<WorkspaceId, (OrgId, ProjectId)>,
    workspace_by_slug: AHashMap<(OrgId, WorkspaceSlug), WorkspaceId>,
    /// Without those that have ended.
    links: AHashMap<LinkId, WorkspaceId>,
}

impl ResourceView {
    pub fn project(&self, org: OrgId, project: ProjectId) -> Option<Resource> {
        (*self.inner.read().projects.get(&project)? == org).then_some(Resource::Project { org, project })
    }

    pub fn project_by_slug(&self, org: OrgId, slug: &ProjectSlug) -> Option<Resource> {
        let project = *self.inner.read().project_by_slug.get(&(org, slug.clone()))?;
        Some(Resource::Project { org, project })
    }

    pub fn workspace(&self, workspace: WorkspaceId) -> Option<Resource> {
        let (org, project) = *self.inner.read().workspaces.get(&workspace)?;
        Some(Resource::Workspace { org, project, workspace })
    }

    pub fn workspace_by_slug(&self, org: OrgId, slug: &WorkspaceSlug) -> Option<Resource> {
        let workspace = *self.inner.read().workspace_by_slug.get(&(org, slug.clone()))?;
        self.workspace(workspace)
    }

    pub fn link(&self, link: LinkId) -> Option<Resource> {
        let inner = self.inner.read();
        let workspace = *inner.links.get(&link)?;
        let (org, project) = *inner.workspaces.get(&workspace)?;
        Some(Resource::Link { org, project, workspace, link })
    }

    pub(crate) fn apply(&self, recorded: &Recorded) {
        let org = recorded.commit.stream.org();
        for event in &recorded.commit.events {
            match event {
                Event::Project(ProjectEvent::Created { project, slug, .. }) => {
                    let mut inner = self.inner.write();
                    inner.projects.insert(*project, org);
                    inner.project_by_slug.insert((org, slug.clone()), *project);
                }
                Event::Workspace(WorkspaceEvent::Created { workspace, project, slug, .. }) => {
                    let mut inner = self.inner.write();
                    inner.workspaces.insert(*workspace, (org, *project));
                    // A retired slug keeps leading to its workspace: it is never given to another.
                    inner.workspace_by_slug.insert((org, slug.clone()), *workspace);
                }
                Event::DevLink(DevLinkEvent::Issued { link, workspace, .. }) => {
                    self.inner.write().links.insert(*link, *workspace);
                }
                // Links end all the time and are asked for rarely then: whoever does reads the log.
                Event::DevLink(DevLinkEvent::Expired | DevLinkEvent::Revoked { .. }) => {
                    if let Ok(link) = recorded.commit.stream.key().parse() {
                        self.inner.write().links.remove(&link);
                    }
                }
                Event::Project(ProjectEvent::Edited { .. } | ProjectEvent::GitCredentialChanged { .. })
                | Event::Workspace(_)
                | Event::DevLink(_)
                | Event::Organization(_)
                | Event::User(_)
                | Event::Runtime(_)
                | Event::Host(_)
                | Event::Claim(_)
                | Event::Denial(_)
                | Event::Decision(_)
                | Event::ServiceToken(_)
                | Event::RootWindow(_)
                | Event::Shell(_)
                | Event::JobRun(_)
                | Event::Secrets(_)
                | Event::Machine(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use envforge_domain::commit::StreamId;
    use envforge_domain::dev_link::DevLinkEvent;

    use crate::given::{DEVELOPER, Story, link, org};

    #[test]
    fn links_that_have_ended_are_forgotten() {
        let mut story = Story::new();
        story.link(2, DEVELOPER);
        for (number, end) in [(1, DevLinkEvent::Revoked { reason: None }), (2, DevLinkEvent::Expired)] {
            assert!(story.hot.resources.link(link(number)).is_some());
            story.append(StreamId::dev_link(org(1), link(number)), vec![end.into()]);
            assert!(story.hot.resources.link(link(number)).is_none());
        }
    }
}
