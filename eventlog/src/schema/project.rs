//! Stored events of projects.

use std::convert::Infallible;

use envforge_domain::ids::ProjectId;
use envforge_domain::project::{GitCredential, ProjectEvent, Repository};
use envforge_domain::secrets::SecretName;
use envforge_domain::slug::ProjectSlug;
use serde::{Deserializer, Serializer};

use super::wire::{Wire, events, object, text};

events! {
    ProjectEvent {
        "project.created.v1" => Created {
            project: ProjectId = "project",
            slug: ProjectSlug = "slug",
            name: String = "name",
            repository: Repository = "repository",
        },
        "project.edited.v1" => Edited { name: String = "name", repository: Repository = "repository" },
        "project.git_credential_changed.v1" => GitCredentialChanged {
            credential: Option<GitCredential> = "credential",
        },
    }
}

object! {
    GitCredential {
        secret: SecretName = "secret",
        username: String = "username",
        in_shells: bool = "in_shells",
    }
}

impl Wire for Repository {
    fn to_wire<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(self.as_str())
    }

    fn from_wire<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        text(deserializer, |text| Ok::<_, Infallible>(Self::recorded(text)))
    }
}
