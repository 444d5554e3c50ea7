-- SPDX-License-Identifier: Apache-2.0
--
-- For wrk: GET of ranges at random, `wrk … URL -- SIZE LENGTH ALIGN SEED`; LENGTH 0 asks for all of it.
-- Requests are made before the clock runs.  Prints one line of JSON.

local requests = {}

function init(args)
    local size, length, align = tonumber(args[1]), tonumber(args[2]), tonumber(args[3])
    local places = math.floor((size - length) / align) + 1

    math.randomseed(tonumber(args[4]))
    for i = 1, length > 0 and 4096 or 1 do
        local first = math.random(0, places - 1) * align

        if length > 0 then
            wrk.headers["Range"] = string.format("bytes=%d-%d", first, first + length - 1)
        end
        requests[i] = wrk.format("GET")
    end
end

local next = 0

function request()
    next = next % #requests + 1
    return requests[next]
end

function done(summary, latency)
    local e = summary.errors

    io.write(string.format(
        '{"requests": %d, "seconds": %.6f, "bytes": %d, "errors": %d, "p50": %d, "p99": %d}\n',
        summary.requests, summary.duration / 1e6, summary.bytes,
        e.connect + e.read + e.write + e.status + e.timeout, latency:percentile(50), latency:percentile(99)))
end
