"""GET /docs: the OpenAPI document as one self-contained page."""

from __future__ import annotations

import html
import json
import re
from collections.abc import Mapping
from typing import Any

from joey._version import __version__

_STYLE = """
:root{--bg:#fbfaf8;--fg:#22211f;--dim:#6f6a62;--line:#e4dfd6;--card:#fff;--code:#f4f1ea;--accent:#b4541a;
--get:#2c6e49;--post:#1f5f99;--put:#7a4fa3;--patch:#9a6b00;--delete:#b3261e}
@media(prefers-color-scheme:dark){:root{--bg:#191816;--fg:#e9e5dd;--dim:#a19a8e;--line:#37342f;--card:#211f1c;
--code:#2a2824;--accent:#f0965a;--get:#7cc79b;--post:#7db8ea;--put:#c3a1e6;--patch:#e2bb5c;--delete:#f08a83}}
*{box-sizing:border-box}html{scroll-padding-top:1rem}
body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.55 system-ui,sans-serif}
.all{display:grid;grid-template-columns:19rem minmax(0,54rem);gap:2.5rem;max-width:80rem;margin:auto;padding:0 1.5rem}
a{color:var(--accent);text-decoration:none}a:hover{text-decoration:underline}
nav{position:sticky;top:0;height:100vh;overflow:auto;padding:1.5rem .8rem 1.5rem 0;font-size:13.5px;
scrollbar-width:thin;scrollbar-color:var(--line) transparent}
nav input{width:100%;padding:.5rem .7rem;border:1px solid var(--line);border-radius:.5rem;background:var(--card);
color:inherit;font:inherit}
nav h2{font-size:12px;text-transform:uppercase;letter-spacing:.06em;color:var(--dim);margin:1.3rem 0 .3rem}
nav a{display:flex;gap:.5rem;padding:.15rem 0;color:inherit;text-decoration:none}
nav a:hover{text-decoration:none}nav a:hover span{color:var(--accent)}
nav b{flex:0 0 3.2rem;font-size:10.5px;line-height:1.9}
main{padding:1.5rem 0 6rem}h1{margin:.2rem 0 1rem;font-size:2rem}h1 small{color:var(--dim);font-size:1rem}
main>h2{margin:3rem 0 .2rem;font-size:1.4rem;text-transform:capitalize}p{margin:.4rem 0 .8rem}.dim{color:var(--dim)}
article{background:var(--card);border:1px solid var(--line);border-radius:.7rem;padding:1rem 1.2rem;margin:1rem 0}
article h3{margin:0;font-size:1.02rem}article h3 code{background:none;padding:0;font-size:.95rem;word-break:break-all}
code,pre{font:13px/1.5 ui-monospace,SFMono-Regular,Menlo,monospace;background:var(--code);border-radius:.35rem}
code{padding:.1rem .3rem}pre{padding:.7rem .9rem;overflow:auto;margin:.5rem 0}pre code{padding:0;background:none}
table{border-collapse:collapse;width:100%;margin:.4rem 0 .8rem;font-size:13.5px}
td,th{text-align:left;vertical-align:top;padding:.3rem .8rem .3rem 0;border-bottom:1px solid var(--line)}
th{color:var(--dim);font-weight:500}h4{margin:1rem 0 .2rem;font-size:12px;text-transform:uppercase;
letter-spacing:.05em;color:var(--dim)}.need{color:var(--accent)}
.get{color:var(--get)}.post{color:var(--post)}.put{color:var(--put)}.patch{color:var(--patch)}.delete{color:var(--delete)}
.tag{float:right;font-size:11.5px;color:var(--dim);border:1px solid var(--line);border-radius:1rem;padding:0 .6rem}
.off{display:none!important}
@media(max-width:60rem){.all{display:block}nav{position:static;height:auto}nav a,nav h2{display:none}}
"""
_SCRIPT = """
const box=document.querySelector('input'),items=[...document.querySelectorAll('[data-text]')];
function look(){const words=box.value.toLowerCase().split(/\\s+/).filter(Boolean);
for(const item of items)item.classList.toggle('off',!words.every(word=>item.dataset.text.includes(word)));
for(const group of document.querySelectorAll('[data-group]')){
const any=items.some(item=>item.dataset.in===group.dataset.group&&!item.classList.contains('off'));
group.classList.toggle('off',!any)}}
box.addEventListener('input',look);
document.addEventListener('keydown',event=>{if(event.key==='/'&&document.activeElement!==box){
event.preventDefault();box.focus()}if(event.key==='Escape'){box.value='';look()}});
"""


def page(document: Mapping[str, Any]) -> str:
    """The HTML of an OpenAPI document as `joey.api.openapi` makes it."""
    found: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {tag["name"]: [] for tag in document["tags"]}
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            found.setdefault((operation["tags"] or ["node"])[0], []).append((method, path, operation))
    about = {tag["name"]: tag["description"] for tag in document["tags"]}
    menu, body = [], []
    for tag, operations in found.items():
        if not operations:
            continue
        menu.append(f'<h2 data-group="{tag}">{tag}</h2>')
        body.append(f'<h2 data-group="{tag}">{tag}</h2><p class="dim" data-group="{tag}">{_e(about.get(tag, ""))}</p>')
        for method, path, operation in operations:
            menu.append(_entry(tag, method, path, operation))
            body.append(_article(tag, method, path, operation))
    menu.append('<h2 data-group="types"><a href="#types">Types</a></h2>')
    body.append('<h2 id="types" data-group="types">Types</h2>')
    for name, schema in sorted(document["components"]["schemas"].items()):
        body.append(_type(name, schema))
    intro = _prose(document["info"]["description"])
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Joey API</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><div class=all><nav>"
        '<input type="search" placeholder="Search ( / )" aria-label="Search" autocomplete="off">'
        f"{''.join(menu)}</nav><main><h1>Joey API <small>{_e(__version__)}</small></h1>{intro}"
        '<p>For programs: <a href="/openapi.json">/openapi.json</a></p>'
        f"{''.join(body)}</main></div><script>{_SCRIPT}</script></body></html>"
    )


def _entry(tag: str, method: str, path: str, operation: Mapping[str, Any]) -> str:
    attributes = f'href="#{operation["operationId"]}" data-in="{tag}" data-text="{_text(method, path, operation)}"'
    return f'<a {attributes}><b class="{method}">{method.upper()}</b><span>{_e(operation["summary"])}</span></a>'


def _text(method: str, path: str, operation: Mapping[str, Any]) -> str:
    names = " ".join(param["name"] for param in operation["parameters"])
    return _e(f"{method} {path} {operation['summary']} {operation['description']} {names}".lower())


def _article(tag: str, method: str, path: str, operation: Mapping[str, Any]) -> str:
    parts = [
        f'<article id="{operation["operationId"]}" data-in="{tag}" data-text="{_text(method, path, operation)}">'
        f'<span class="tag">{_e(operation["operationId"])}</span>'
        f'<h3><span class="{method}">{method.upper()}</span> <code>{_e(path)}</code></h3>'
        f"<p><strong>{_e(operation['summary'])}.</strong> {_prose(operation['description'])}</p>"
    ]
    if operation["parameters"]:
        rows = "".join(_parameter(param) for param in operation["parameters"])
        parts.append(f"<h4>Parameters</h4><table>{rows}</table>")
    if "requestBody" in operation:
        [(media, content)] = operation["requestBody"]["content"].items()
        parts.append(f"<h4>Body</h4><p>{_e(media)}: {_kind(content['schema'])}</p>")
    answers = "".join(
        f"<tr><td><code>{status}</code></td><td>{_answer(response)}</td></tr>"
        for status, response in operation["responses"].items()
    )
    parts.append(
        f"<h4>Answers</h4><table>{answers}</table><pre><code>{_e(_curl(method, path, operation))}</code></pre>"
    )
    return "".join(parts) + "</article>"


def _parameter(param: Mapping[str, Any]) -> str:
    need = ' <span class="need">required</span>' if param.get("required") and param["in"] != "path" else ""
    kind = _kind(param["schema"])
    return (
        f"<tr><td><code>{_e(param['name'])}</code>{need}</td><td>{_e(param['in'])}</td><td>{kind}</td>"
        f"<td>{_e(param.get('description', ''))}</td></tr>"
    )


def _answer(response: Mapping[str, Any]) -> str:
    if "$ref" in response:
        return '<a href="#type-Problem">Problem</a> (application/problem+json)'
    content = response.get("content", {})
    kinds = ", ".join(f"{_kind(one['schema'])} <span class=dim>{_e(media)}</span>" for media, one in content.items())
    return kinds or _e(response["description"])


def _kind(schema: Mapping[str, Any]) -> str:
    if "$ref" in schema:
        name = schema["$ref"].rpartition("/")[2]
        return f'<a href="#type-{name}">{name}</a>'
    for join in ("anyOf", "oneOf"):
        if join in schema:
            return " or ".join(_kind(one) for one in schema[join])
    if "enum" in schema:
        return " | ".join(f"<code>{_e(str(value))}</code>" for value in schema["enum"])
    if schema.get("type") == "array":
        return f"list of {_kind(schema.get('items', {}))}"
    if schema.get("type") == "object" and isinstance(schema.get("additionalProperties"), dict):
        return f"object of {_kind(schema['additionalProperties'])}"
    text = _e(schema.get("description", "")) if schema.get("description", "").startswith("A line") else ""
    return text or _e(str(schema.get("type", "bytes")))


def _type(name: str, schema: Mapping[str, Any]) -> str:
    rows = "".join(
        f"<tr><td><code>{_e(field)}</code></td><td>{_kind(one)}</td><td>{_default(one)}</td></tr>"
        for field, one in schema.get("properties", {}).items()
    )
    rows = rows or f"<tr><td>{_kind(schema)}</td></tr>"
    text = _e(f"{name} {' '.join(schema.get('properties', ()))}".lower())
    return (
        f'<article id="type-{name}" data-in="types" data-text="{text}"><h3><code>{name}</code></h3>'
        f"{_prose(schema.get('description', ''))}<table>{rows}</table></article>"
    )


def _default(schema: Mapping[str, Any]) -> str:
    if "default" not in schema:
        return ""
    text = json.dumps(schema["default"])
    return f"<code>{_e(text if len(text) < 60 else text[:57] + '…')}</code>"


def _curl(method: str, path: str, operation: Mapping[str, Any]) -> str:
    target = path.replace("{ref}", "my-sandbox")
    query = "&".join(
        f"{param['name']}=…" for param in operation["parameters"] if param["in"] == "query" and _need(param)
    )
    command = f"curl --unix-socket $JOEY_HOME/run/api.sock -X {method.upper()} 'http://joey{target}"
    command += f"?{query}'" if query else "'"
    if "requestBody" in operation:
        [(media, content)] = operation["requestBody"]["content"].items()
        example = json.dumps(content["example"]) if "example" in content else None
        data = f"-d '{example}'" if example else ("-d '{}'" if media == "application/json" else "--data-binary @FILE")
        command += f" \\\n  -H 'Content-Type: {media}' {data}"
    return command


def _need(param: Mapping[str, Any]) -> bool:
    return bool(param.get("required"))


def _prose(text: str) -> str:
    paragraphs = (" ".join(part.split()) for part in text.split("\n\n"))
    return "".join("<p>" + re.sub("`([^`]+)`", r"<code>\1</code>", _e(one)) + "</p>" for one in paragraphs if one)


def _e(text: str) -> str:
    return html.escape(text, quote=True)
