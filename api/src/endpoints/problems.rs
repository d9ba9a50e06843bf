//! What each problem code means: where the `type` of a problem leads.

use serde::Serialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use crate::page::{Page, Path};
use crate::problem::Problem;
use crate::problem::catalogue::{self, CATALOGUE, Entry};

pub(crate) fn routes() -> OpenApiRouter {
    OpenApiRouter::new().routes(routes!(list)).routes(routes!(get))
}

#[derive(Serialize, ToSchema)]
struct Documented {
    code: &'static str,
    status: u16,
    title: &'static str,
    meaning: &'static str,
}

impl From<&Entry> for Documented {
    fn from(entry: &Entry) -> Self {
        Self { code: entry.code, status: entry.status.as_u16(), title: entry.title, meaning: entry.meaning }
    }
}

/// Every problem code.
#[utoipa::path(get, path = "/v1/problems", tag = "problems", responses((status = 200, body = Page<Documented>)),
    extensions(("x-envforge-action" = json!("public"))))]
async fn list() -> axum::Json<Page<Documented>> {
    axum::Json(Page { items: CATALOGUE.iter().map(Documented::from).collect(), next: None })
}

/// One problem code.
#[utoipa::path(get, path = "/v1/problems/{code}", tag = "problems", responses((status = 200, body = Documented)),
    extensions(("x-envforge-action" = json!("public"))))]
async fn get(Path(code): Path<String>) -> Result<axum::Json<Documented>, Problem> {
    let entry = catalogue::find(&code).ok_or_else(Problem::not_found)?;
    Ok(axum::Json(entry.into()))
}
