"""Takes out of HashiCorp's own bindings for its AWS provider the schema of the types that deploy/aws uses.

    pip download --no-deps cdktf-cdktf-provider-aws==21.22.1
    python3 provider_schema.py cdktf_cdktf_provider_aws-21.22.1-py3-none-any.whl > golden/aws_provider.json

The bindings were generated from the provider's schema (6.25.0) and published by HashiCorp on PyPI; the JavaScript in them says of each
argument what Terraform takes for it. The provider itself is to be had from HashiCorp's registry alone. What comes out has the form of
`terraform providers schema -json`. Not in it: which arguments the provider fills in where nobody gives them, sensitive and deprecated
ones, and the provider's own configuration, of which the modules set nothing.
"""

import hashlib
import io
import json
import re
import sys
import tarfile
import zipfile

TYPES = {
    "resource": [
        "iam_instance_profile",
        "iam_role",
        "iam_role_policy",
        "kms_alias",
        "kms_key",
        "security_group",
        "vpc_security_group_egress_rule",
        "vpc_security_group_ingress_rule",
    ],
    "data_source": ["caller_identity", "iam_policy_document", "partition", "region"],
}
ARGUMENT = re.compile(r'(\w+): \{\s+value: .*\n\s+isBlock: (\w+),\s+type: "(\w+)",\s+storageClassType: "(\w+)"')
FLAGS = re.compile(r"// (\w+) - computed: (\w+), optional: (\w+), required: \w+\n(?=(.*\n.*))")
PRIMITIVE = {"string": "string", "number": "number", "boolean": "bool"}
SHOWN = {
    "this.getStringAttribute(": "string",
    "this.getNumberAttribute(": "number",
    "this.getBooleanAttribute(": "bool",
    "Fn.tolist(this.getListAttribute(": ["set", "string"],
    "return this.getListAttribute(": ["list", "string"],
    "new cdktf.StringMap(": ["map", "string"],
}


def part(text, begin):
    """From there to the end of the function or class."""
    return text[text.index(begin) :].split("\n}\n")[0]


def camel(name):
    return "".join(word.capitalize() for word in name.split("_"))


def block(text, of, hcl, lives):
    """The block whose arguments the function `hcl` lists and whose attributes the class `lives` has."""
    attributes, blocks = {}, {}
    flags = {name: (computed == "true", optional == "true", at) for name, computed, optional, at in FLAGS.findall(lives)}
    for name, is_block, kind, holds in ARGUMENT.findall(hcl):
        required = f"reset{camel(name)}()" not in lives
        if is_block == "false":
            base, plural = re.fullmatch(r"(string|number|boolean)(List|Map)?", holds).groups()
            what = [kind, PRIMITIVE[base]] if plural else PRIMITIVE[base]
            attributes[name] = {"type": what, "required" if required else "optional": True}
            continue
        struct = holds.removesuffix("List")
        function = f"function {struct[0].lower()}{struct[1:]}ToHclTerraform("
        inner = block(text, struct, part(text, function), part(text, f"class {struct}OutputReference "))
        computed, _, made = flags[name]
        if computed:
            # An attribute of the old kind, which may be written as blocks.
            fields = {name: field["type"] for name, field in inner["attributes"].items()}
            attributes[name] = {"type": [kind, ["object", fields]], "optional": True, "computed": True}
            continue
        blocks[name] = {"nesting_mode": {"struct": "single"}.get(kind, kind), "block": inner}
        if required:
            blocks[name]["min_items"] = 1
        if kind != "struct" and f"new {struct}OutputReference(" in made:
            blocks[name]["max_items"] = 1
    for name, (computed, optional, at) in flags.items():
        if computed and not optional:
            [what] = [what for code, what in SHOWN.items() if code in at]
            attributes[name] = {"type": what, "computed": True}
    found = {"attributes": attributes}
    if blocks:
        found["block_types"] = blocks
    return found


def described(library, kind, name):
    folder = f"{'data_aws_' if kind == 'data_source' else ''}{name}".replace("_", "-")
    text = library.extractfile(f"package/lib/{folder}/index.js").read().decode()
    lives = part(text, f"class {camel(folder.replace('-', '_'))} extends cdktf.Terraform")
    return {"version": 0, "block": block(text, name, part(lives, "synthesizeHclAttributes()"), lives)}


def run(path):
    with open(path, "rb") as file:
        digest = hashlib.sha256(file.read()).hexdigest()
    with zipfile.ZipFile(path) as wheel:
        [inner] = [name for name in wheel.namelist() if name.endswith(".jsii.tgz")]
        library = tarfile.open(fileobj=io.BytesIO(wheel.read(inner)))
    schema = {
        "from": {"package": path.rsplit("/", 1)[-1], "sha256": digest, "provider": "hashicorp/aws 6.25.0"},
        **{f"{kind}_schemas": {f"aws_{name}": described(library, kind, name) for name in names} for kind, names in TYPES.items()},
    }
    print(json.dumps(schema, indent=1, sort_keys=True))


run(sys.argv[1])
