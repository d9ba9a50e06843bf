//! The OpenAPI document: generated from the endpoints, with what all of them have in common added once.

use std::collections::BTreeSet;

use serde_json::json;
use utoipa::openapi::header::HeaderBuilder;
use utoipa::openapi::path::{Operation, Parameter, ParameterBuilder, ParameterIn};
use utoipa::openapi::schema::{ObjectBuilder, SchemaType, Type};
use utoipa::openapi::security::{HttpAuthScheme, HttpBuilder, SecurityRequirement, SecurityScheme};
use utoipa::openapi::{
    ComponentsBuilder, ContentBuilder, Info, OpenApi, Ref, RefOr, Required, ResponseBuilder, Schema,
};

use crate::access::SURFACE_HEADER;
use crate::problem::{CONTENT_TYPE, catalogue::CATALOGUE};
use crate::reads::MIN_POSITION_HEADER;
use crate::write::{IDEMPOTENCY_HEADER, POSITION_HEADER};

/// Names the action that an operation needs, or `public`.
pub const ACTION_EXTENSION: &str = "x-envforge-action";

/// Adds to each operation what its path and method say already.
pub(crate) fn finish(mut document: OpenApi) -> OpenApi {
    document.info = Info::new("EnvForge API", env!("CARGO_PKG_VERSION"));
    document.info.description = Some(
        "Commands in, queries and event streams out. Problems are RFC 9457 with a stable `code`; \
         every code is listed at /v1/problems."
            .to_owned(),
    );
    let mut components = document.components.take().unwrap_or_else(|| ComponentsBuilder::new().build());
    components.schemas.insert("Problem".to_owned(), RefOr::T(problem_schema()));
    let bearer = HttpBuilder::new().scheme(HttpAuthScheme::Bearer).bearer_format("JWT").build();
    components.security_schemes.insert("access_token".to_owned(), SecurityScheme::Http(bearer).into());
    document.components = Some(components);
    for (path, item) in &mut document.paths.paths {
        let reads = [&mut item.get];
        let writes = [&mut item.post, &mut item.put, &mut item.patch, &mut item.delete];
        for operation in reads.into_iter().flatten() {
            complete(path, operation, false);
        }
        for operation in writes.into_iter().flatten() {
            complete(path, operation, true);
        }
    }
    document
}

fn complete(path: &str, operation: &mut Operation, writes: bool) {
    let public = action_of(operation) == Some("public");
    // Handlers are called after what they do; their router's noun makes the name unique.
    if let (Some(name), Some(tag)) = (&operation.operation_id, operation.tags.as_ref().and_then(|tags| tags.first())) {
        operation.operation_id = Some(format!("{tag}_{name}"));
    }
    let mut parameters = operation.parameters.take().unwrap_or_default();
    let names = path.split(['{', '}']).skip(1).step_by(2);
    parameters.extend(names.map(|name| parameter(name, ParameterIn::Path, Type::String, path_parameter(name))));
    if !public {
        operation.security = Some(vec![SecurityRequirement::new("access_token", Vec::<String>::new())]);
        parameters.push(header(
            SURFACE_HEADER.as_str(),
            Type::String,
            "The surface for which the session was opened. May be left out; another one is refused.",
        ));
        if writes {
            parameters.push(header(
                IDEMPOTENCY_HEADER.as_str(),
                Type::String,
                "1 to 200 visible ASCII characters. The same key and body get the same answer, for 30 days at \
                 least; another body is refused. Secrets in a body are not compared.",
            ));
        } else if !path.ends_with("/events") {
            parameters.push(header(
                MIN_POSITION_HEADER.as_str(),
                Type::Integer,
                "The answer is at least as fresh as this position, or a `stale_read` problem; `position_unknown` where the log has not got it.",
            ));
        }
    }
    operation.parameters = (!parameters.is_empty()).then_some(parameters);
    for (status, response) in &mut operation.responses.responses {
        if let RefOr::T(response) = response
            && writes
            && status.starts_with('2')
        {
            let position = HeaderBuilder::new()
                .schema(Some(ObjectBuilder::new().schema_type(SchemaType::Type(Type::Integer))))
                .description(Some("Where in the log the effect stands."))
                .build();
            response.headers.insert(POSITION_HEADER.as_str().to_owned(), position.into());
        }
    }
    let problem = ContentBuilder::new().schema(Some(Ref::from_schema_name("Problem"))).build();
    let default = ResponseBuilder::new().description("A problem.").content(CONTENT_TYPE, problem).build();
    operation.responses.responses.insert("default".to_owned(), RefOr::T(default));
}

/// The action that an operation names.
pub fn action_of(operation: &Operation) -> Option<&str> {
    operation.extensions.as_ref()?.get(ACTION_EXTENSION)?.as_str()
}

/// Paths to which anybody may send a body.
pub(crate) fn anonymous_routes(document: &OpenApi) -> BTreeSet<String> {
    let anonymous = |operation: &&Operation| action_of(operation) == Some("public");
    let posts = document.paths.paths.iter().filter(|(_, item)| item.post.as_ref().is_some_and(|post| anonymous(&post)));
    posts.map(|(path, _)| path.clone()).collect()
}

fn path_parameter(name: &str) -> &'static str {
    match name {
        "org" => "Slug or id of the organization.",
        "project" => "Slug or id of the project.",
        "workspace" => "Slug or id of the workspace.",
        "link" => "Id of the link.",
        "user" => "Id of the user.",
        "session" => "Id of the session.",
        "invitation" => "Id of the invitation: of the user who is to be.",
        "team" => "Slug or id of the team.",
        "secret" => "Name of the secret: A-Z, 0-9 and `_`.",
        "job" => "Name of the job in envforge.yml.",
        "service" => "Name of the service in envforge.yml.",
        "code" => "A problem's code.",
        _ => "",
    }
}

fn parameter(name: &str, place: ParameterIn, kind: Type, description: &str) -> RefOr<Parameter> {
    let required = if matches!(place, ParameterIn::Path) { Required::True } else { Required::False };
    let parameter = ParameterBuilder::new()
        .name(name)
        .parameter_in(place)
        .required(required)
        .description(Some(description))
        .schema(Some(ObjectBuilder::new().schema_type(SchemaType::Type(kind))))
        .build();
    RefOr::T(parameter)
}

fn header(name: &str, kind: Type, description: &str) -> RefOr<Parameter> {
    parameter(name, ParameterIn::Header, kind, description)
}

/// RFC 9457, with our `code`. A problem may have more fields.
fn problem_schema() -> Schema {
    let text = |description: &str| {
        ObjectBuilder::new()
            .schema_type(SchemaType::Type(Type::String))
            .description(Some(description.to_owned()))
            .build()
    };
    let codes = CATALOGUE.iter().map(|entry| json!(entry.code));
    let code = ObjectBuilder::new()
        .schema_type(SchemaType::Type(Type::String))
        .enum_values(Some(codes))
        .description(Some("Stable; what programs branch on."))
        .build();
    ObjectBuilder::new()
        .property("type", text("Where the code is explained."))
        .property("title", text("The same for every occurrence of the code."))
        .property("status", ObjectBuilder::new().schema_type(SchemaType::Type(Type::Integer)))
        .property("detail", text("What, where, and what would be right."))
        .property("instance", text("Names this very request."))
        .property("code", code)
        .required("type")
        .required("title")
        .required("status")
        .required("detail")
        .required("instance")
        .required("code")
        .into()
}
