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
// # Requests in two legs
//
// With PDOptions.Connector one engine can compute a prompt and another take over
// its KV and answer. Both are told by the request: kv_transfer_params of vLLM's
// connectors, on chat, completions, messages and responses; bootstrap_host,
// bootstrap_port and bootstrap_room of SGLang, whose prompt's leg makes one token.
// Without them vLLM's engines compute requests whole, whatever their role.
//
//	nixl       the prompt's leg first ("do_remote_decode":true, one token); its
//	           answer has the kv_transfer_params that the other leg sends back. An
//	           answer that ends by itself, not by its limit, has none
//	nixl-push  both legs at once, with the same transfer_id; the second one also
//	           has remote_host and remote_port
//	mooncake   the same, with remote_bootstrap_addr and remote_engine_id, which
//	           GET /query of the bootstrap server tells
//	sglang     both legs at once, with the same room, found by GET /route of the
//	           bootstrap server. The prompt's leg answers when its KV has been fetched
//	offload    the prompt's leg first ("remote_decoder"), the other one with
//	           "remote_prefiller", both with a kv_request_id. "remote_kv_source" names
//	           a peer that is asked for the prefix; what it has not is computed
//	shared     blocks of all prompts go to a folder, except those of decode engines;
//	           "cache_hit_threshold" has a request end with finish_reason
//	           "cache_threshold" where fewer of its tokens have KV
//
// Blocks are kept under a lease, which the one who will fetch them extends by two
// thirds every sixth of it, from when it sees the request. It waits for room, and
// for its turn on the source's link, which takes as long as the true bytes would of
// the tokens that are not cached where they go. Below 64 tokens, SGLang's apart, it
// rather computes them. What goes over the wire are 64 bytes for each block, which
// tell its tokens, the process it is of and its place; a difference ends the
// request with status 500, whatever the policy is, and counts in "checks_failed".
// Other failures do so unless PDOptions.LoadFailure is to recompute, which SGLang
// cannot; a stream then has status 200 and one event with the error, as vLLM's has.
// cached_tokens of the second leg count what came, all but the last token, as
// vLLM's do. Whoever aborts a second leg has the source free its blocks at once.
//
// The side channel is a protocol of its own over TCP: lines of JSON, and blocks
// after the answer to "read". Each connection begins with a "hello", in which the
// source is told which engine id is meant and refuses if it is another process by
// now, and the other side compares the compatibility hash; unlike vLLM's it comes
// with the facts hashed, so that the error says what differs. Leases, beats and
// waits are of the wall clock, whatever the speedup; transfers are not.
//
// The truth beside: GET /sim/pd tells who the engine is, what is kept for whom and
// for how long, the last transfers (tokens, blocks, bytes, what they waited for and
// took, how they ended) and counts.
//
// # Images
//
// Images of chats, messages and responses are encoded before the prompt is
// computed, one at a time, each in Options.EncodeTime, and kept. With
// Options.Encoder an engine does nothing else: its answer has no words, and in
// "ec_transfer_params", by the hash of each image, where it is (peer_host,
// peer_port, size_bytes, nixl_agent_metadata_b64). Sent with a request, that has
// any engine fetch the image instead; what comes is held to the image that it must
// be of, and what does not come, or is of another, is encoded where it is needed.
// Over the wire, GET /sim/embeddings/{hash} of the encoder's own port, go a few
// bytes at once. GET /sim/state counts images.
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
// Faults on requests in two legs; of the prompt's side unless they say otherwise:
//
//	pd-die-before       crash when a prompt has been computed, before its answer
//	pd-die-after        crash after its answer
//	pd-die-before-pull  the other side crashes before it fetches
//	pd-die-after-pull   the other side crashes when it has fetched, before its answer
//	pd-restart          at once: another process at the same addresses. Nothing is
//	                    cached or kept, and what is under way breaks off
//	pd-restart-after    the same, between the end of an answer and the fetching
//	pd-stale            do not notice what is meant for another process: send what is
//	                    in those blocks now
//	pd-side-gone        the side channel closes connections at once
//	pd-incompatible     another version of the connector
//	pd-slow-link        transfers take "factor" times as long (default 10)
//	pd-hang             transfers begin and never end
//	pd-wrong-block      one block of each transfer is not what it should be
//	pd-expire           leases are "delay_ms" long (default 0)
//	pd-no-heartbeat     the other side does not extend leases
//	pd-pull-stall       the other side waits as long as its client does for a source
//	                    of a prefix that does not answer
//	pd-unregistered     SGLang's bootstrap server answers 503
//	ec-lost             who fetches an encoded image is told that there is none
//	ec-wrong            who fetches an encoded image gets that of another
//
// A "count" above 0 limits a fault to that many requests, and "after" spares as
// many before; otherwise it lasts until mended. A cut or a garbage answer to a request without "stream" breaks
// off inside its body.
package server
