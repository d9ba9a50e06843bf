"""Takes out of HashiCorp's own bindings for its AWS provider what the types that deploy/aws uses may be given and show.

    pip download --no-deps cdktf-cdktf-provider-aws==21.22.1
    python3 provider_schema.py cdktf_cdktf_provider_aws-21.22.1-py3-none-any.whl > golden/aws_provider.json

The bindings were generated from the provider's schema (6.25.0) and published by HashiCorp on PyPI. The provider itself is to be had from
HashiCorp's registry alone.
"""

import ast
import hashlib
import json
import sys
import zipfile

TYPES = {
    "resource": ["iam_instance_profile", "iam_role", "iam_role_policy", "kms_alias", "kms_key"],
    "data": ["caller_identity", "iam_policy_document", "partition", "region"],
}
# Of Terraform, or of CDKTF itself.
NOT_THE_PROVIDERS = {"connection", "count", "depends_on", "for_each", "lifecycle", "provider", "provisioners", "id_", "scope", "self"}


def arguments(classes, name, main):
    made = next(part for part in classes[name].body if getattr(part, "name", "") == "__init__").args
    found = {}
    for argument, default in zip(made.kwonlyargs, made.kw_defaults):
        if argument.arg in NOT_THE_PROVIDERS:
            continue
        named = [part.value for part in ast.walk(argument.annotation) if isinstance(part, ast.Constant)]
        nested = [part for part in named if part in classes and part.startswith(main) and part != main]
        what = {"required": default is None}
        if nested:
            what["block"] = arguments(classes, nested[0], main)
        found[argument.arg] = what
    return found


def described(wheel, kind, name):
    module = f"cdktf_cdktf_provider_aws/{'data_aws_' if kind == 'data' else ''}{name}/__init__.py"
    tree = ast.parse(wheel.read(module))
    classes = {part.name: part for part in tree.body if isinstance(part, ast.ClassDef)}
    base = "TerraformDataSource" if kind == "data" else "TerraformResource"
    main = next(name for name, part in classes.items() if any(getattr(of, "attr", "") == base for of in part.bases))
    shown = lambda part: isinstance(part, ast.FunctionDef) and any(
        getattr(decorator, "attr", "") == "property" for decorator in part.decorator_list
    )
    shows = sorted(part.name for part in classes[main].body if shown(part) and not part.name.endswith("_input"))
    return {"arguments": arguments(classes, main, main), "attributes": shows}


def run(path):
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    with zipfile.ZipFile(path) as wheel:
        schema = {
            "from": {"package": path.rsplit("/", 1)[-1], "sha256": digest, "provider": "hashicorp/aws 6.25.0"},
            **{kind: {f"aws_{name}": described(wheel, kind, name) for name in names} for kind, names in TYPES.items()},
        }
    print(json.dumps(schema, indent=1, sort_keys=True))


run(sys.argv[1])
