// Package server puts a simulated engine (package enginesim) behind the HTTP
// surface of vLLM, so that clients, scrapers and gateways cannot tell.
//
// # Surface
//
//	GET  /v1/models             POST /v1/completions    POST /tokenize
//	GET  /health                POST /v1/chat/completions POST /detokenize
//	GET  /version               GET  /metrics
//
// Text is made of tokens of at most four bytes; the vocabulary is all of them,
// so any text has one tokenization and any answer, sent back as part of the
// next prompt, has the tokens it was generated with. The next token is a hash
// of all tokens before it and the seed. The wire code is the package's own: it
// shares nothing with the gateway's, so that one misreading cannot hide in
// both.
//
// # Faults
//
// POST /sim/fault makes the engine misbehave, DELETE /sim/fault (with
// ?kind=... for one kind) mends it, GET /sim/state shows active faults and
// the engine's inner state. The body is a Fault:
//
//	{"kind":"refuse","status":503,"count":10}
//
// Faults on requests to completions and chat, or with "all":true on every
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
//	metrics-empty    a page without any vLLM series
//	metrics-huge     the page preceded by "bytes" (default 50 MB) of other series
//
// Faults on the engine:
//
//	slow   steps take "factor" times as long (default 3)
//	crash  Config.OnCrash is called; without it a Node closes its listener and
//	       all connections at once
//
// A "count" above 0 limits a fault to that many requests; otherwise it lasts
// until mended. A cut or a garbage answer to a request without "stream" breaks
// off inside its body.
package server
