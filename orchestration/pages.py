"""Pages of a run that one looks at and clicks in: data -> one HTML file each, that needs nothing
else. Pure."""

import html
import json
from collections.abc import Sequence
from typing import Any

from torch import Tensor

from orchestration.timeline import Attempt, costs, goodput

CSS = """
body{font:14px/1.5 system-ui,sans-serif;color:#222;margin:24px;max-width:1000px}
h1{font-size:18px;margin:0 0 4px}p{color:#666;margin:0 0 16px}
table{border-collapse:collapse;width:100%}th{text-align:left;color:#666;font-weight:500;cursor:pointer}
td,th{padding:4px 10px 4px 0;border-bottom:1px solid #e6e8eb}td.n{text-align:right;white-space:nowrap}
input{font:inherit;padding:6px 10px;width:280px;margin:0 0 12px;border:1px solid #b8bec6;border-radius:4px}
a{color:#2563a8;cursor:pointer;text-decoration:none}a:hover{text-decoration:underline}
.bar{background:#2563a8;height:10px;border-radius:2px;min-width:1px}.bad{background:#c2452d}
.two{display:grid;grid-template-columns:1fr 1fr;gap:32px}.life{position:relative;height:26px}
.life div{position:absolute;top:3px;height:20px;background:#2563a8;border-radius:2px;min-width:2px}
"""
SHOWN_PAIRS = 200


def confusion_page(confusion: Tensor, classes: Sequence[str]) -> str:
    """confusion: int64 (C, C), [truth, predicted]. The worst pairs first; a class's own mistakes,
    both ways, at a click. Only cells that are not zero travel, so 1,000 classes are small."""
    wrong = confusion.clone().fill_diagonal_(0)
    cells = [[t, p, int(wrong[t, p])] for t, p in wrong.nonzero().tolist()]
    cells.sort(key=lambda cell: (-cell[2], cell[0], cell[1]))
    data = {
        "classes": list(classes),
        "totals": confusion.sum(1).tolist(),
        "right": confusion.diagonal().tolist(),
        "cells": cells,
        "shown": SHOWN_PAIRS,
    }
    count, mistakes = int(confusion.sum()), int(wrong.sum())
    intro = (
        f"{mistakes:,} of {count:,} images were taken for another class, in {len(cells):,} ways."
    )
    body = (
        '<input id="q" placeholder="a class"><div id="one"></div><table><thead><tr><th>truth</th>'
        "<th>taken for</th><th>images</th><th>of its class</th></tr></thead>"
        '<tbody id="rows"></tbody></table>'
    )
    return _page("What was taken for what", intro, body, data, _CONFUSION)


def class_page(rows: Sequence[tuple[str, int, float]]) -> str:
    """rows: (class, its images, percent that are right); sorted at a click on a column's head."""
    body = (
        '<table><thead><tr><th data-k="0">class</th><th data-k="1">images</th>'
        '<th data-k="2">right</th><th></th></tr></thead><tbody id="rows"></tbody></table>'
    )
    intro = f"{len(rows):,} classes, the worst first."
    return _page("Each class", intro, body, {"rows": [list(row) for row in rows]}, _CLASSES)


def timeline_page(attempts: Sequence[Attempt], name: str) -> str:
    """A run's life: a bar for each attempt on one axis of time, and what each end cost."""
    if not attempts:
        return _page(name, "It has not begun to train.", "", {}, "")
    begin, end = attempts[0].began, max(attempts[-1].ended, attempts[0].began + 1e-3)
    scale = 100 / (end - begin)
    bars = "".join(
        f'<div style="left:{scale * (one.began - begin):.3f}%;'
        f'width:{scale * (one.ended - one.began):.3f}%" '
        f'title="attempt {number}: {one.ranks} ranks, steps {one.from_step + 1} to {one.to_step}">'
        "</div>"
        for number, one in enumerate(attempts, start=1)
    )
    spent = [*costs(attempts), (attempts[-1].ended_by or "it goes on", 0.0, 0)]
    rows = "".join(
        f"<tr><td>{number}</td><td class=n>{one.began - begin:,.0f} s</td>"
        f"<td class=n>{one.ended - one.began:,.0f} s</td><td class=n>{one.ranks}</td>"
        f"<td class=n>{one.from_step:,} to {one.to_step:,}</td><td>{html.escape(what)}</td>"
        f"<td class=n>{seconds:,.0f} s</td><td class=n>{again:,}</td></tr>"
        for number, (one, (what, seconds, again)) in enumerate(
            zip(attempts, spent, strict=True), start=1
        )
    )
    table = (
        "<table><tr><th>attempt</th><th>began at</th><th>lasted</th><th>ranks</th><th>steps</th>"
        f"<th>ended by</th><th>then nothing for</th><th>steps again</th></tr>{rows}</table>"
    )
    plural = "s" if len(attempts) > 1 else ""
    intro = (
        f"{len(attempts)} attempt{plural} in {end - begin:,.0f} s; {100 * goodput(attempts):.0f} % "
        "of it in steps that count."
    )
    return _page(f"The life of {name}", intro, f'<div class="life">{bars}</div>{table}', {}, "")


def _page(title: str, intro: str, body: str, data: dict[str, Any], script: str) -> str:
    # "<" never stands in the data, so that no name in it can end the script.
    embedded = json.dumps(data).replace("<", "\\u003c")
    return (
        f"<!doctype html><html><head><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{CSS}</style></head><body><h1>{html.escape(title)}</h1><p>{html.escape(intro)}</p>"
        f"{body}<script>const data={embedded};{script}</script></body></html>"
    )


_CONFUSION = """
const $=id=>document.getElementById(id),c=data.classes;
const cell=(row,text,number)=>{const td=row.insertCell();td.textContent=text;if(number)td.className='n';return td};
const link=(row,k)=>{const a=document.createElement('a');a.textContent=c[k];a.onclick=()=>one(k);row.insertCell().append(a)};
const share=(n,k)=>data.totals[k]?(100*n/data.totals[k]).toFixed(1)+' %':'';
function list(){const q=$('q').value.toLowerCase();$('rows').replaceChildren();let n=0;
 for(const [t,p,k] of data.cells){if(q&&!c[t].toLowerCase().includes(q)&&!c[p].toLowerCase().includes(q))continue;
  if(n++>=data.shown)break;const row=$('rows').insertRow();link(row,t);link(row,p);cell(row,k,1);cell(row,share(k,t),1)}}
function half(box,title,cells,other){const d=document.createElement('div'),h=document.createElement('h3');h.textContent=title;d.append(h);
 const t=document.createElement('table'),most=Math.max(1,...cells.map(x=>x[2]));
 for(const x of cells.slice(0,30)){const row=t.insertRow();link(row,x[other]);cell(row,x[2],1);
  const b=document.createElement('div');b.className='bar bad';b.style.width=100*x[2]/most+'px';row.insertCell().append(b)}
 if(!cells.length){const e=document.createElement('p');e.textContent='nothing';d.append(e)}
 d.append(t);box.append(d)}
function one(k){const box=$('one');box.replaceChildren();const h=document.createElement('h2');
 h.textContent=c[k]+': '+data.right[k]+' of '+data.totals[k]+' right';box.append(h);
 const two=document.createElement('div');two.className='two';box.append(two);
 half(two,'was taken for',data.cells.filter(x=>x[0]==k),1);half(two,'was seen in',data.cells.filter(x=>x[1]==k),0);scrollTo(0,0)}
$('q').oninput=list;list();
"""

_CLASSES = """
let key=2,up=true;const body=document.getElementById('rows');
function draw(){body.replaceChildren();
 const rows=[...data.rows].sort((a,b)=>(a[key]<b[key]?-1:a[key]>b[key]?1:0)*(up?1:-1));
 for(const [name,images,right] of rows){const row=body.insertRow();row.insertCell().textContent=name;
  let d=row.insertCell();d.textContent=images;d.className='n';d=row.insertCell();d.textContent=right.toFixed(1)+' %';d.className='n';
  const b=document.createElement('div');b.className='bar';b.style.width=2*right+'px';row.insertCell().append(b)}}
document.querySelectorAll('th[data-k]').forEach(h=>h.onclick=()=>{const k=+h.dataset.k;up=k==key?!up:true;key=k;draw()});draw();
"""
