-- Requests as a browser sends them for a script of the page, from many sessions in turn. Arguments: the workspace's host, a file of cookies.
local requests, turn = {}, 0

function init(args)
   local host, file = args[1], args[2]
   for cookie in io.lines(file) do
      requests[#requests + 1] = wrk.format("GET", nil, {
         ["Host"] = host,
         ["User-Agent"] = "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/142.0.0.0 Safari/537.36",
         ["Accept"] = "*/*",
         ["Accept-Encoding"] = "gzip, deflate, br, zstd",
         ["Accept-Language"] = "en-US,en;q=0.9,de;q=0.8",
         ["Referer"] = "http://" .. host .. "/",
         ["Sec-Ch-Ua"] = '"Chromium";v="142", "Not_A Brand";v="99"',
         ["Sec-Ch-Ua-Mobile"] = "?0",
         ["Sec-Ch-Ua-Platform"] = '"Linux"',
         ["Sec-Fetch-Dest"] = "script",
         ["Sec-Fetch-Mode"] = "no-cors",
         ["Sec-Fetch-Site"] = "same-origin",
         ["Cookie"] = "theme=dark; app_session=5f0c6f0e2b8a4d7d9c1b; envforge_session=" .. cookie .. "; _ga=GA1.1.1234567890.1790000000",
      })
   end
end

function request()
   turn = turn % #requests + 1
   return requests[turn]
end

function done(summary, latency)
   local errors = summary.errors
   io.write(string.format("RESULT %d %d %d %d %d\n", summary.requests, summary.duration,
      errors.connect + errors.read + errors.write + errors.status + errors.timeout,
      latency:percentile(50), latency:percentile(99)))
end
