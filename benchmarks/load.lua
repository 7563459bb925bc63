-- Sends the requests of a file in turn, with new events in each.
--
--   wrk -s load.lua URL -- FILE NUMBER [statuses]
--
-- The file has requests as they go over the wire, with the byte 2 between them. `@########` is the
-- next number, counted from NUMBER on, `#########` the same one again, and `####` its device.
-- With `statuses` the result has the number of answers by status, which costs wrk a little.

local DEVICES = 5000
local requests, number, turn = {}, 0, 0
local threads = {}
statuses = {}

-- Returns the pieces of a request: the places of numbers, and all between them.
local function split(text)
  local pieces, from = {}, 1
  while true do
    local first, last = text:find("[@#]###+", from)
    table.insert(pieces, text:sub(from, (first or 0) - 1))
    if not first then
      return pieces
    end
    table.insert(pieces, text:sub(first, last))
    from = last + 1
  end
end

function init(args)
  local file = assert(io.open(args[1], "rb"))
  for text in file:read("*a"):gmatch("[^\2]+") do
    table.insert(requests, split(text))
  end
  file:close()
  number = tonumber(args[2])
  if args[3] == "statuses" then
    function response(status)
      statuses[status] = (statuses[status] or 0) + 1
    end
  end
end

function setup(thread)
  table.insert(threads, thread)
end

function request()
  turn = turn % #requests + 1
  local filled = {}
  for index, piece in ipairs(requests[turn]) do
    if piece == "@########" then
      number = number + 1
      piece = string.format("%09d", number)
    elseif piece == "#########" then
      piece = string.format("%09d", number)
    elseif piece == "####" then
      piece = string.format("%04d", number % DEVICES)
    end
    filled[index] = piece
  end
  return table.concat(filled)
end

function done(summary, latency)
  local errors, counts = summary.errors, {}
  for _, thread in ipairs(threads) do
    for status, count in pairs(thread:get("statuses")) do
      table.insert(counts, string.format('"%d": %d', status, count))
    end
  end
  io.write(string.format(
    '\n{"answers": %d, "refused": %d, "broken": %d, "seconds": %f, "p50": %f, "p99": %f,'
      .. ' "statuses": {%s}}\n',
    summary.requests, errors.status, errors.connect + errors.read + errors.write + errors.timeout,
    summary.duration / 1e6, latency:percentile(50) / 1e3, latency:percentile(99) / 1e3, table.concat(counts, ", ")
  ))
end
