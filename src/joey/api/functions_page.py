"""GET /functions: functions and what they do, as one self-contained page that looks every two seconds.

The page holds nothing: its script asks /v1/functions for everything, over TCP with the key that is typed in (kept in
the tab's session storage).
"""

from __future__ import annotations

from joey.api.light import web
from joey.api.routes import Call, Route

_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; base-uri 'none'; "
    "frame-ancestors 'none'"
)
_STYLE = """
:root{--bg:#fbfaf8;--fg:#22211f;--dim:#6f6a62;--line:#e4dfd6;--card:#fff;--accent:#b4541a;--bad:#b3261e;--good:#2c6e49}
@media(prefers-color-scheme:dark){:root{--bg:#191816;--fg:#e9e5dd;--dim:#a19a8e;--line:#37342f;--card:#211f1c;
--accent:#f0965a;--bad:#f08a83;--good:#7cc79b}}
*{box-sizing:border-box}body{margin:0;background:var(--bg);color:var(--fg);font:15px/1.5 system-ui,sans-serif}
main{max-width:80rem;margin:auto;padding:1.5rem}h1{margin:.2rem 0 1rem;font-size:1.8rem}h1 small{color:var(--dim);
font-size:1rem;font-weight:400}a{color:var(--accent)}
table{border-collapse:collapse;width:100%;background:var(--card);border:1px solid var(--line);border-radius:.6rem}
th,td{text-align:right;padding:.45rem .7rem;border-bottom:1px solid var(--line);font-variant-numeric:tabular-nums;
white-space:nowrap}th{color:var(--dim);font-weight:500;font-size:13px}th:first-child,td:first-child{text-align:left}
tr.one{cursor:pointer}tr.one:hover td{background:color-mix(in srgb,var(--accent) 8%,transparent)}
td.bad{color:var(--bad)}td.detail{text-align:left;white-space:normal;color:var(--dim);font-size:13.5px}
td.detail pre{margin:.4rem 0 0;max-height:16rem;overflow:auto;font:12.5px/1.45 ui-monospace,monospace;color:var(--fg)}
svg{vertical-align:middle}polyline{fill:none;stroke:var(--accent);stroke-width:1.5}
#key{display:none;margin:1rem 0}#key input{padding:.4rem .6rem;width:28rem;max-width:100%}.dim{color:var(--dim)}
"""
_SCRIPT = """
const rows=document.querySelector('tbody'),note=document.querySelector('#note'),key=document.querySelector('#key');
const past=new Map(),openOnes=new Set();let logs=new Map();
const headers=()=>{const k=sessionStorage.getItem('key');return k?{Authorization:'Bearer '+k}:{}};
key.addEventListener('submit',event=>{event.preventDefault();
sessionStorage.setItem('key',key.querySelector('input').value);look()});
const ms=value=>value==null?'–':value<1?(value*1000).toPrecision(3)+' ms':value.toPrecision(3)+' s';
const sum=counts=>Object.values(counts||{}).reduce((a,b)=>a+b,0);
function cell(row,text,kind){const one=row.insertCell();one.textContent=text;if(kind)one.className=kind;return one}
function line(values){const most=Math.max(1,...values),svg=document.createElementNS('http://www.w3.org/2000/svg','svg');
svg.setAttribute('width',96);svg.setAttribute('height',20);
const shape=document.createElementNS('http://www.w3.org/2000/svg','polyline');
shape.setAttribute('points',values.map((v,i)=>(i*96/59).toFixed(1)+','+(19-18*v/most).toFixed(1)).join(' '));
svg.append(shape);return svg}
function show(found){rows.replaceChildren();
for(const fn of found){const f=fn.figures,id=fn.owner+'/'+fn.name,old=past.get(id)||{count:f.invocations,rates:[]};
old.rates.push(Math.max(0,f.invocations-old.count));old.count=f.invocations;if(old.rates.length>60)old.rates.shift();
past.set(id,old);const row=rows.insertRow();row.className='one';
cell(row,fn.name+(fn.owner?' ('+fn.owner+')':''));cell(row,'').append(line(old.rates));cell(row,f.invocations);
cell(row,f.cold_starts);cell(row,sum(f.errors),sum(f.errors)?'bad':'');
cell(row,sum(f.throttles),sum(f.throttles)?'bad':'');
cell(row,f.running+' / '+f.waiting);cell(row,f.queued);cell(row,f.instances+(f.starting?' +'+f.starting:''));
cell(row,ms(f.duration_p50)+' / '+ms(f.duration_p99));cell(row,ms(f.start_mean)+' / '+ms(f.start_p99));
row.onclick=()=>{openOnes.has(id)?openOnes.delete(id):openOnes.add(id);look()};
if(openOnes.has(id)){const more=rows.insertRow(),all=cell(more,'','detail');all.colSpan=11;
const s=fn.spec;all.append(s.kind+' · '+(s.handler||s.command.join(' ')||s.image)+' · '+
Math.round(s.memory/1048576)+' MiB · timeout '+s.timeout+' s · concurrency '+s.concurrency+
' · versions '+(fn.versions.join(', ')||'none')+' · aliases '+(fn.aliases.join(', ')||'none')+
' · errors '+JSON.stringify(f.errors)+' · throttles '+JSON.stringify(f.throttles));
const text=document.createElement('pre');text.textContent=logs.get(id)||'';all.append(text)}}
note.textContent=found.length?'':'No functions yet: joey fn deploy'}
async function look(){try{const answer=await fetch('/v1/functions',{headers:headers()});
key.style.display=answer.status===401||answer.status===403?'block':'none';
if(!answer.ok){note.textContent='HTTP '+answer.status;return}const found=await answer.json();
for(const fn of found){const id=fn.owner+'/'+fn.name;if(openOnes.has(id)){
const said=await fetch('/v1/functions/'+encodeURIComponent(fn.name)+'/logs',
{headers:{...headers(),Accept:'text/plain'}});if(said.ok)logs.set(id,(await said.text()).slice(-8000))}}
show(found)}catch(error){note.textContent=String(error)}}
look();setInterval(look,2000);
"""
_COLUMNS = (
    "Function", "Last 2 minutes", "Invocations", "Cold", "Errors", "Throttled", "Running / waiting", "Queued",
    "Instances", "Duration p50 / p99", "Start mean / p99",
)  # fmt: skip


def page() -> str:
    """The HTML."""
    heads = "".join(f"<th>{one}</th>" for one in _COLUMNS)
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Joey functions</title>'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<style>{_STYLE}</style></head><body><main>"
        '<h1>Functions <small><a href="/docs">API</a> · durations are upper ends of buckets</small></h1>'
        '<form id="key"><label>API key <input type="password" autocomplete="off"></label> <button>Use</button></form>'
        f'<table><thead><tr>{heads}</tr></thead><tbody></tbody></table><p id="note" class="dim"></p>'
        f"</main><script>{_SCRIPT}</script></body></html>"
    )


async def functions_page(call: Call) -> web.Response:
    """Functions and what they do, as a page. It holds no data: its script asks for it, with your key."""
    headers = {"Content-Security-Policy": _POLICY, "X-Content-Type-Options": "nosniff"}
    kept = call.service.documents
    if "functions" not in kept:
        kept["functions"] = page().encode()
    return web.Response(body=kept["functions"], content_type="text/html", charset="utf-8", headers=headers)


ROUTES = (
    Route(
        "GET", "/functions", functions_page, "Functions as a page", tag="functions", answer=bytes, media="text/html",
        open=True,
    ),
)  # fmt: skip
