"""Pages of a run that one looks at and clicks in: data -> one HTML file each, that needs nothing
else. Pure."""

import html
import json
import math
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import torch
from torch import Tensor

from orchestration.run.timeline import Attempt, costs, goodput

CSS = """
body{font:14px/1.5 system-ui,sans-serif;color:#222;margin:24px;max-width:1040px}
h1{font-size:18px;margin:0 0 2px}h2{font-size:16px;margin:0 0 8px}h3{font-size:14px;margin:0;color:#6b7280;font-weight:500}
p{color:#6b7280;margin:0 0 16px}table{border-collapse:collapse;width:100%}
th{text-align:left;color:#6b7280;font-weight:500;white-space:nowrap}th[data-k]{cursor:pointer}
td,th{padding:4px 16px 4px 0;border-bottom:1px solid #e6e8eb;vertical-align:middle}
.n{text-align:right;white-space:nowrap;font-variant-numeric:tabular-nums}.w{width:220px}
input{font:inherit;padding:6px 10px;width:280px;margin:0 8px 12px 0;border:1px solid #c3c9d0;border-radius:4px}
a{color:#2563a8;cursor:pointer}a:hover{text-decoration:underline}#found:not(:empty){display:block;margin:0 0 12px}#found a{display:inline-block;margin-right:16px}
.bar{background:#f4f5f7;border-radius:2px;height:10px;overflow:hidden}.bar div{background:#2563a8;height:10px}.bad div{background:#c2452d}
#one{background:#f9fafb;border:1px solid #e6e8eb;border-radius:6px;padding:14px 18px;margin:0 0 20px}#one:empty{display:none}
.two{display:grid;grid-template-columns:1fr 1fr;gap:36px}.two .w{width:110px}.x{float:right}
.map{width:auto;margin:0 0 24px}.map td{padding:0;width:22px;min-width:22px;height:22px;border:1px solid #fff;background:#f4f5f7;text-align:center;font-size:11px;cursor:pointer}
.map th{border:0;padding:0 6px 0 0;text-align:right;font-size:12px}.map thead th{writing-mode:vertical-rl;transform:rotate(180deg);padding:6px 0 0;text-align:left}
.few td{width:44px;min-width:44px;height:32px;font-size:12px}.map td:hover{outline:2px solid #222}
.life{position:relative;margin:8px 190px 28px 110px;border-left:1px solid #c3c9d0;font-size:12px}.life>i{position:absolute;top:0;bottom:0;border-left:1px solid #e6e8eb}
.life>i span{position:absolute;top:100%;transform:translateX(-50%);font-style:normal;color:#6b7280;white-space:nowrap}
.row{position:relative;height:26px}.row *{position:absolute;top:4px;height:18px;line-height:18px;white-space:nowrap}
.run{background:#2563a8;border-radius:2px;min-width:2px}.gap{background:#c2452d55;min-width:1px}.row .lost{color:#c2452d;text-align:right}
"""
SHOWN_PAIRS = 200
MAPPED_CLASSES = 50
MOST_CELLS = 100_000  # of about 14 bytes each
NOTHING = "nothing to show yet"


def confusion_page(confusion: Tensor, classes: Sequence[str]) -> str:
    """confusion: int64 (C, C), [truth, predicted]. The worst pairs first; a class's own mistakes,
    both ways, at a click; of up to 50 classes the matrix too. Only cells that are not zero travel,
    so 1,000 classes are small."""
    wrong = confusion.clone().fill_diagonal_(0)
    where = wrong.nonzero()  # (cells, 2)
    cells = torch.cat([where, wrong[where[:, 0], where[:, 1], None]], 1).tolist()
    cells.sort(key=lambda cell: (-cell[2], cell[0], cell[1]))
    data = {
        "classes": list(classes),
        "totals": confusion.sum(1).tolist(),
        "right": confusion.diagonal().tolist(),
        "cells": cells[:MOST_CELLS],
        "shown": SHOWN_PAIRS,
        "mapped": MAPPED_CLASSES,
    }
    count, mistakes = int(confusion.sum()), int(wrong.sum())
    intro = (
        f"{mistakes:,} of {count:,} images were taken for another class, in {len(cells):,} ways."
        if count
        else NOTHING
    )
    if len(cells) > MOST_CELLS:
        intro += f" The page knows the {MOST_CELLS:,} most frequent."
    body = (
        '<div id="one"></div><div id="map"></div><input id="q" placeholder="search a class">'
        '<span id="found"></span><table><thead><tr><th>truth</th><th>taken for</th>'
        '<th class="n">images</th><th class="n">of its class</th><th class="w"></th></tr></thead>'
        '<tbody id="rows"></tbody></table><p id="more"></p>'
    )
    return _page("What was taken for what", intro, body, data, _COMMON + _CONFUSION)


def class_page(rows: Sequence[tuple[str, int, float]]) -> str:
    """rows: (class, its images, percent that are right); sorted at a click on a column's head."""
    body = (
        '<input id="q" placeholder="search a class"><table><thead><tr>'
        '<th data-k="0">class</th><th data-k="1" class="n">images</th>'
        '<th data-k="2" class="n">right</th><th class="w"></th></tr></thead>'
        '<tbody id="rows"></tbody></table>'
    )
    shown = sorted(rows, key=lambda row: (row[2], row[0]))
    intro = NOTHING
    if rows:
        mean, half = sum(row[2] for row in rows) / len(rows), sum(row[2] < 50 for row in rows)
        intro = (
            f"{len(rows):,} classes, the worst first; {mean:.1f} % right in the mean of the "
            f"classes, {half:,} of them below 50 %."
        )
    data = {"rows": [list(row) for row in shown]}
    return _page("Each class", intro, body, data, _COMMON + _CLASSES)


def timeline_page(attempts: Sequence[Attempt], name: str) -> str:
    """A run's life: a bar for each attempt on one axis of time, before it in red the time without
    any; below, what each end cost."""
    if not attempts:
        return _page(name, "It has not begun to train.", "", {}, "")
    begin = attempts[0].began
    span = max(max(one.ended for one in attempts) - begin, 1e-3)  # seconds
    ends = [*costs(attempts), (attempts[-1].ended_by or "it goes on", 0.0, 0)]
    gaps = [0.0, *(seconds for _, seconds, _ in ends)]
    bars = "".join(
        _bar(number, one, gap, begin, span)
        for number, (one, gap) in enumerate(zip(attempts, gaps, strict=False), start=1)
    )
    rows = "".join(
        f'<tr><td>{number}</td><td class="n">{one.began - begin:,.0f} s</td>'
        f'<td class="n">{one.ended - one.began:,.0f} s</td>'
        f'<td class="n" title="{_phases(one)}">{one.phases.get("workers", 0.0):,.1f} s</td>'
        f'<td class="n">{one.ranks}</td>'
        f'<td class="n">{one.from_step:,} to {one.to_step:,}</td><td>{html.escape(what)}</td>'
        f'<td class="n">{seconds:,.0f} s</td><td class="n">{again:,}</td></tr>'
        for number, (one, (what, seconds, again)) in enumerate(
            zip(attempts, ends, strict=True), start=1
        )
    )
    heads = (
        '<th>attempt</th><th class="n">began at</th><th class="n">lasted</th>'
        '<th class="n">start</th><th class="n">ranks</th>'
        '<th class="n">steps</th><th>ended by</th><th class="n">then nothing for</th>'
        '<th class="n">steps again</th>'
    )
    plural = "s" if len(attempts) > 1 else ""
    intro = (
        f"{len(attempts)} attempt{plural} in {span:,.0f} s; {100 * goodput(attempts):.0f} % "
        f"of it in steps that count. It began {datetime.fromtimestamp(begin, UTC):%Y-%m-%d %H:%M} UTC."
    )
    body = f'<div class="life">{_ticks(span)}{bars}</div><table><tr>{heads}</tr>{rows}</table>'
    return _page(f"The life of {name}", intro, body, {}, "")


def _phases(one: Attempt) -> str:
    """Where the time of an attempt's start went; the driver's part was before it began."""
    return html.escape(", ".join(f"{name} {s:.1f} s" for name, s in one.phases.items()))


def _bar(number: int, one: Attempt, gap: float, begin: float, span: float) -> str:
    """An attempt's row on the axis; gap: seconds without any before it."""
    left, right = (100 * (at - begin) / span for at in (one.began, one.ended))
    told = f"attempt {number}: {one.ranks} ranks, steps {one.from_step + 1} to {one.to_step}"
    lost = ""
    if gap:
        since = left - 100 * gap / span
        lost = (
            f'<div class="gap" style="left:{since:.3f}%;width:{left - since:.3f}%"></div>'
            f'<div class="lost" style="right:calc({100 - since:.3f}% + 6px)">{gap:,.0f} s</div>'
        )
    return (
        f'<div class="row">{lost}<div class="run" title="{told}" '
        f'style="left:{left:.3f}%;width:{right - left:.3f}%"></div>'
        f'<div style="left:calc({right:.3f}% + 8px)">{one.ranks} ranks, '
        f"{one.ended - one.began:,.0f} s</div></div>"
    )


def _ticks(span: float) -> str:
    """An axis of up to eight round times since the begin. span: seconds."""
    units = {"s": 1, "min": 60, "h": 3600, "d": 86400}
    rounds = [(unit, n) for unit in units for n in (1, 2, 5, 10, 15, 30) if n < 10 or unit != "h"]
    unit, each = next(
        ((unit, n) for unit, n in rounds if span <= 8 * n * units[unit]),
        ("d", math.ceil(span / 8 / 86400)),
    )
    step = each * units[unit]
    return "".join(
        f'<i style="left:{100 * at * step / span:.3f}%"><span>{at * each} {unit}</span></i>'
        for at in range(int(span / step) + 1)
    )


def _page(title: str, intro: str, body: str, data: dict[str, Any], script: str) -> str:
    # "<" never stands in the data, so that no name in it can end the script.
    embedded = json.dumps(data).replace("<", "\\u003c")
    return (
        f"<!doctype html><html><head><meta charset=utf-8><title>{html.escape(title)}</title>"
        f"<style>{CSS}</style></head><body><h1>{html.escape(title)}</h1><p>{html.escape(intro)}</p>"
        f"{body}<script>const data={embedded};{script}</script></body></html>"
    )


_COMMON = """
const $=id=>document.getElementById(id),many=n=>n.toLocaleString('en-US');
const make=(tag,text,to,kind)=>{const e=document.createElement(tag);e.textContent=text;if(kind)e.className=kind;if(to)to.append(e);return e};
const bar=(row,percent,kind)=>{const box=make('div','',make('td','',row,'w'),'bar'+kind);make('div','',box).style.width=percent+'%'};
"""

_CONFUSION = """
const c=data.classes,from=c.map(()=>[]),into=c.map(()=>[]);
for(const cell of data.cells){from[cell[0]].push(cell);into[cell[1]].push(cell)}
const percent=(n,k)=>data.totals[k]?100*n/data.totals[k]:0,told=(n,k)=>percent(n,k).toFixed(1)+' %';
function link(to,k){const a=make('a',c[k],to);a.tabIndex=0;a.onclick=()=>one(k);a.onkeydown=e=>{if(e.key=='Enter')one(k)}}
function list(){const q=$('q').value.toLowerCase(),has=c.map(name=>name.toLowerCase().includes(q));$('rows').replaceChildren();
 const cells=data.cells.filter(([t,p])=>has[t]||has[p]),most=cells.length?Math.max(...cells.slice(0,data.shown).map(x=>percent(x[2],x[0]))):1;
 for(const [t,p,n] of cells.slice(0,data.shown)){const row=$('rows').insertRow();link(row.insertCell(),t);link(row.insertCell(),p);
  make('td',many(n),row,'n');make('td',told(n,t),row,'n');bar(row,100*percent(n,t)/most,' bad')}
 $('more').textContent=cells.length>data.shown?'The '+data.shown+' most frequent of '+many(cells.length)+'; search for a class to see its own.':'';
 $('found').replaceChildren();if(q)c.map((_,k)=>k).filter(k=>has[k]).slice(0,8).forEach(k=>link($('found'),k))}
function half(box,title,cells,other,none){const d=make('div','',box);make('h3',title,d);
 if(!cells.length){make('p',none,d);return}
 const table=make('table','',d),most=Math.max(...cells.map(x=>x[2]));
 for(const x of cells.slice(0,30)){const row=table.insertRow();link(row.insertCell(),x[other]);
  make('td',many(x[2]),row,'n');make('td',told(x[2],x[0]),row,'n');bar(row,100*x[2]/most,' bad')}
 if(cells.length>30)make('p','and '+(cells.length-30)+' more',d)}
function one(k){const box=$('one');box.replaceChildren();const x=make('a','close',box,'x');x.onclick=()=>box.replaceChildren();
 make('h2',c[k]+': '+many(data.right[k])+' of '+many(data.totals[k])+' right'+(data.totals[k]?', '+told(data.right[k],k):''),box);
 const two=make('div','',box,'two');half(two,'was taken for',from[k],1,'nothing else');half(two,'what was taken for it',into[k],0,'nothing');scrollTo(0,0)}
function map(){const size=c.length,few=size<=12,table=make('table','',$('map'),'map'+(few?' few':'')),
  head=make('tr','',make('thead','',table)),counts=c.map((_,t)=>c.map((_,p)=>t==p?data.right[t]:0));
 for(const [t,p,n] of data.cells)counts[t][p]=n;
 make('th','truth \u2193, taken for \u2192',head).style.cssText='writing-mode:horizontal-tb;transform:none;vertical-align:bottom';
 c.forEach(name=>make('th',name,head));
 let worst=0.3;for(const [t,,n] of data.cells)worst=Math.max(worst,percent(n,t)/100);
 const body=make('tbody','',table);c.forEach((name,t)=>{const row=make('tr','',body);make('th',name,row);
  counts[t].forEach((n,p)=>{const td=make('td',few&&n?many(n):'',row),share=percent(n,t)/100,deep=t==p?share:Math.sqrt(share/worst);
   if(n)td.style.background=(t==p?'rgb(37 99 168 / ':'rgb(194 69 45 / ')+deep+')';if(deep>0.6)td.style.color='#fff';
   td.title=name+(t==p?' right: ':' taken for '+c[p]+': ')+many(n)+' ('+told(n,t)+')';td.onclick=()=>one(t)})})}
$('q').oninput=list;list();if(c.length>1&&c.length<=data.mapped)map();
"""

_CLASSES = """
let key=2,up=true;const heads=[...document.querySelectorAll('th[data-k]')],names=heads.map(h=>h.textContent);
function draw(){const q=$('q').value.toLowerCase();$('rows').replaceChildren();
 heads.forEach((h,k)=>{h.textContent=names[k]+(k==key?(up?' \u2191':' \u2193'):'');h.ariaSort=k==key?(up?'ascending':'descending'):'none'});
 const rows=data.rows.filter(row=>row[0].toLowerCase().includes(q)).sort((a,b)=>(a[key]<b[key]?-1:a[key]>b[key]?1:0)*(up?1:-1));
 for(const [name,images,right] of rows){const row=$('rows').insertRow();make('td',name,row);
  make('td',many(images),row,'n');make('td',right.toFixed(1)+' %',row,'n');bar(row,right,'')}}
heads.forEach((h,k)=>h.onclick=()=>{up=k==key?!up:true;key=k;draw()});$('q').oninput=draw;draw();
"""
