"""The load: wrk (Debian's package `wrk`), driven by a Lua script that makes up visits.

A session has two pages of five vitals each, and a visitor one and a half sessions. Every connection has four sessions
open at a time, and each request takes the next vital of one of them by chance, so the ten arrive spread out and among
those of others. Ids are new in every run and as long as real ones: sessions and visitors 36 characters, vitals 30.
"""

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.benchmarks.servers import BenchmarkError, Server

# Bodies are joined from parts made beforehand (values, pages, the front of a session), so that wrk is not the limit.
SCRIPT = r"""
local ffi = require("ffi")
ffi.cdef("typedef struct { long s; long us; } moment; int gettimeofday(moment *, void *);")
local random, floor, format, concat = math.random, math.floor, string.format, table.concat

local METRICS = {"TTFB", "FCP", "LCP", "INP", "CLS"}
local LIMITS = {TTFB = {800, 1800}, FCP = {1800, 3000}, LCP = {2500, 4000}, INP = {200, 500}, CLS = {0.1, 0.25}}
local USUAL = {TTFB = 420, FCP = 1150, LCP = 1700, CLS = 0.035}
local SCREENS = {{1920, 1080}, {1536, 864}, {2560, 1440}, {412, 915}}
local SYSTEMS = {"Windows NT 10.0; Win64; x64", "Macintosh; Intel Mac OS X 10_15_7", "X11; Linux x86_64",
                 "Linux; Android 10; K"}
local VALUES, VISITORS_MAX = 997, 10000

local started = 0
function setup(thread)
  thread:set("thread_number", started)
  started = started + 1
end

local clock = ffi.new("moment")
local function now_ms()
  ffi.C.gettimeofday(clock, nil)
  return tonumber(clock.s) * 1000 + floor(tonumber(clock.us) / 1000)
end

-- chance in the front of an id, as in a real one (rows land all over an index); in its tail what makes it unique
local made = 0
local function uuid()
  made = made + 1
  return format("%04x%04x-%04x-4%03x-%04x-%04x%x%07x", random(0, 65535), random(0, 65535), random(0, 65535),
                random(0, 4095), random(32768, 49151), run_number, thread_number, made)
end

local function value_of(metric)
  if metric == "INP" then return 8 * random(2, 40) end            -- event durations come in steps of 8 ms
  local spread = math.exp(0.6 * (random() + random() + random() - 1.5) * 2)
  if metric == "CLS" then return USUAL.CLS * spread end           -- 0.021345678901234567
  if metric == "TTFB" then return floor(USUAL.TTFB * spread * 10) / 10 - 1.397e-10 end  -- 419.59999999986030
  return floor(USUAL[metric] * spread * 10) / 10                  -- 1234.5
end

local values, pages, heads, open, visitors = {}, {}, {}, {}, {}
local visitors_made, sessions_made, slots, constant = 0, 0, 0, nil

function init(args)
  run_number, slots, constant = tonumber(args[1]), tonumber(args[2]), args[3] == "constant"
  math.randomseed(run_number * 16 + thread_number + 1)
  for _, metric in ipairs(METRICS) do
    values[metric] = {}
    for i = 1, VALUES do
      local value = value_of(metric)
      local limit = LIMITS[metric]
      local rating = value <= limit[1] and "good" or value <= limit[2] and "needs-improvement" or "poor"
      local text = format("%.16g", value)
      values[metric][i] = format('%s","value":%s,"delta":%s,"rating":"%s","id":"v6-', metric, text, text, rating)
    end
  end
  for i = 1, 50 do
    pages[i] = format('","navigationType":"navigate","pageUrl":"https://shop.example/products/%d",' ..
                      '"pagePath":"/products/%d","pageTitle":"Product %d - The Example Shop",', i, i, i)
  end
  for i, system in ipairs(SYSTEMS) do
    local mobile = i == 4 and " Mobile" or ""
    heads[i] = "POST /api/track/web-vitals HTTP/1.1\r\nHost: " .. wrk.host .. ":" .. wrk.port ..
      "\r\nConnection: keep-alive\r\nUser-Agent: Mozilla/5.0 (" .. system ..
      ") AppleWebKit/537.36 (KHTML, like Gecko) Chrome/141.0.0.0" .. mobile .. " Safari/537.36" ..
      "\r\nContent-Type: text/plain;charset=UTF-8\r\nAccept: */*" ..
      "\r\nOrigin: https://shop.example\r\nReferer: https://shop.example/\r\nContent-Length: "
  end
end

-- of three sessions two are a new visitor's and one is somebody's who was here before
local function visitor()
  if sessions_made % 3 == 0 then return visitors[random(#visitors)] end
  local new = {id = uuid(), client = random(#SYSTEMS)}
  visitors[visitors_made % VISITORS_MAX + 1] = new
  visitors_made = visitors_made + 1
  return new
end

local function session()
  sessions_made = sessions_made + 1
  local who = visitor()
  local screen = SCREENS[who.client]
  return {
    step = 0, page = 0, page_at = 0, head = heads[who.client],
    front = '{"sessionId":"' .. uuid() .. '","anonymousId":"' .. who.id .. '","funnelId":"landing","metric":"',
    tail = ',"screenWidth":' .. screen[1] .. ',"screenHeight":' .. screen[2] .. '}',
  }
end

function request()
  if constant and open[1] then return open[1] end
  local slot = random(slots)
  local s = open[slot]
  if s == nil then
    s = session()
    open[slot] = s
  end
  local now = now_ms()
  local nth = s.step % 5 + 1
  if nth == 1 then
    s.page, s.page_at = random(#pages), now
  end
  s.step = s.step + 1
  if s.step == 10 then open[slot] = nil end
  local body = s.front .. values[METRICS[nth]][random(VALUES)] .. s.page_at .. "-" .. random(1e12, 9e12) ..
    pages[s.page] .. '"seq":' .. nth .. ',"timestamp":' .. now .. s.tail
  local text = s.head .. #body .. "\r\n\r\n" .. body
  if constant then open[1] = text end
  return text
end

function done(summary, latency)
  local e = summary.errors
  io.write(format('\nRESULT {"requests":%d,"duration_us":%d,"failed":%d,"socket_errors":%d,"p50_us":%d,"p99_us":%d}\n',
                  summary.requests, summary.duration, e.status, e.connect + e.read + e.write + e.timeout,
                  latency:percentile(50), latency:percentile(99)))
end
"""


@dataclass(frozen=True)
class Run:
    """What wrk saw in one run: requests answered, of them those with a status over 399, and the latencies."""

    requests: int
    duration_us: int
    failed: int
    socket_errors: int
    p50_us: int
    p99_us: int

    @property
    def rate(self) -> float:
        """Requests a second that were answered well."""
        return (self.requests - self.failed) / (self.duration_us / 1e6)


@dataclass
class Load:
    """Runs wrk with one set of options against any server; numbers the runs, so that no id comes twice."""

    folder: Path
    connections: int
    threads: int
    runs: int = 0

    def run(self, server: Server, seconds: int, *, constant: bool = False) -> Run:
        """Load the server for `seconds`; with `constant` all bodies are the same one."""
        script = self.folder / "beacons.lua"
        if not script.exists():
            script.write_text(SCRIPT)
        self.runs += 1
        slots = 4 * self.connections // self.threads
        command = ["wrk", f"-t{self.threads}", f"-c{self.connections}", f"-d{seconds}s", "--timeout", "60s"]
        command += ["--latency", "-s", str(script), f"http://127.0.0.1:{server.port}/api/track/web-vitals"]
        command += ["--", str(self.runs), str(slots), *(["constant"] if constant else [])]
        wrk = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 90, check=False)
        lines = [line for line in wrk.stdout.splitlines() if line.startswith("RESULT ")]
        if wrk.returncode != 0 or not lines:
            raise BenchmarkError(f"wrk failed (exit {wrk.returncode}): {wrk.stdout[-500:]}{wrk.stderr[-500:]}")
        return Run(**json.loads(lines[0].removeprefix("RESULT ")))
