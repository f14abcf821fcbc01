// Package server puts a simulated engine (package enginesim) behind the HTTP
// surface of vLLM or of SGLang, so that clients, scrapers and gateways cannot
// tell.
//
// # Surface
//
// Both engines:
//
//	POST /v1/chat/completions   GET  /v1/models         GET /health
//	POST /v1/completions        POST /tokenize          GET /metrics
//	POST /v1/embeddings         POST /detokenize
//	POST /v1/responses          GET  /v1/responses/{id} POST /v1/responses/{id}/cancel
//
// vLLM:
//
//	POST /v1/messages           POST /v1/messages/count_tokens
//	POST /v1/audio/transcriptions, /v1/audio/translations
//	POST /rerank, /v1/rerank, /v2/rerank, /score, /v1/score
//	GET  /version, /load, /ping
//	POST /v1/load_lora_adapter, /v1/unload_lora_adapter     with Options.LoadLoRA
//
// and with Options.DevMode:
//
//	POST /sleep?level=&mode=    POST /wake_up?tags=     GET /is_sleeping
//	POST /pause?mode=           POST /resume            GET /is_paused
//	POST /abort_requests        POST /reset_prefix_cache, /reset_mm_cache, /reset_encoder_cache
//	GET  /server_info
//
// SGLang, whose page has the 16 tokens of a simulated block, not one:
//
//	POST /generate              POST /abort_request     GET, POST /flush_cache
//	GET  /get_model_info, /model_info, /get_server_info, /server_info
//	GET  /v1/loads, /get_load, /health_generate
//	POST /v1/rerank, /v1/score
//	POST /load_lora_adapter, /unload_lora_adapter           with Options.LoadLoRA
//
// Handlers share one way through the engine, a generation, and one loop that
// streams it; what a dialect adds is a framer, which writes its events.
// Embeddings, ranks and scores are prefills that generate nothing: they wait
// and take time like all others, and their vectors are made from the words.
//
// A request that must call a tool, or answer in JSON, gets values invented to
// fit the schema; left to itself the model only talks. An image costs a fixed
// number of tokens that depend on its address. The log probabilities are
// invented, too.
//
// Adapters are models with texts and caches of their own. At most
// Options.MaxLoRAs of them run at once; requests for others wait.
//
// Text is made of tokens of at most four bytes; the vocabulary is all of them,
// so any text has one tokenization and any answer, sent back as part of the
// next prompt, has the tokens it was generated with. The next token is a hash
// of all tokens before it and the seed. The wire code is the package's own: it
// shares nothing with the gateway's, so that one misreading cannot hide in
// both.
//
// # KV cache
//
// With Options.CPUTokens, blocks that leave the GPU stay in CPU memory, and then
// on disk, and are loaded when they are asked for again; see enginesim.Offload.
// With Options.KVEvents the engine publishes what happens to its blocks, over
// ZeroMQ and in any of the encodings in the field, one message for each step that
// changes something; Options.KVReplay is where messages are asked for again.
// Stores on the GPU have their tokens. Those below it only say where blocks are,
// except that SGLang's have tokens in CPU memory, too. Dropping the cache clears
// all tiers.
//
// The truth beside: GET /sim/kv counts the blocks of each tier and says which
// message is next, so that all before it must tell the same; ?keys=true has all
// keys, in hexadecimal. POST /sim/kv says how many tokens of a "prompt" (text or
// ids; with "lora" and "cache_salt") each tier has.
//
// # Faults
//
// POST /sim/fault makes the engine misbehave, DELETE /sim/fault (with
// ?kind=... for one kind) mends it, GET /sim/state shows active faults and
// the engine's inner state. The body is a Fault:
//
//	{"kind":"refuse","status":503,"count":10}
//
// Faults on requests that use the engine, or with "all":true on every
// route but /sim:
//
//	hang          accept and never answer
//	refuse        answer with "status" (default 503)
//	delay         wait "delay_ms" before looking at the request
//	garbage       answer bytes that are not HTTP ("bytes" of them, default 512)
//	garbage-body  answer 200 with "bytes" of a body that is neither JSON nor SSE
//	cut           break the connection after "tokens" tokens of a stream, on an event's end
//	cut-event     the same, inside the event that follows
//
// Faults on /metrics:
//
//	metrics-stale    the page as it was when the fault was set
//	metrics-missing  404
//	metrics-empty    a page without any of the engine's series
//	metrics-huge     the page preceded by "bytes" (default 50 MB) of other series
//
// Faults on the engine:
//
//	slow   steps take "factor" times as long (default 3)
//	crash  Config.OnCrash is called; without it a Node closes its listener and
//	       all connections at once
//
// Faults on KV events, for each message or request for a replay:
//
//	kv-drop         not sent; a replay has it
//	kv-swap         sent after the next one
//	kv-duplicate    sent twice
//	kv-corrupt      bytes that are no message; a replay has the right ones
//	kv-malformed    with a store among its events that cannot be read
//	kv-unknown      with an event of a class that nobody knows
//	kv-ring-short   only the last "batches" messages are left for the replay
//	kv-replay-off   the request is not answered
//	kv-replay-slow  "delay_ms" before each message
//	kv-restart      at once: the cache is empty, messages count from 0 again, and
//	                connections break; with "clear":true the first message says so
//
// A "count" above 0 limits a fault to that many requests, and "after" spares as
// many before; otherwise it lasts until mended. A cut or a garbage answer to a request without "stream" breaks
// off inside its body.
package server
