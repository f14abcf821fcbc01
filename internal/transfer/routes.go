package transfer

import (
	"net/http"
	"reflect"
)

// prefix is where the exchange's own schema lives.
const prefix = "/v1/transfer"

// route is one way to ask, and what the document says of it.
type route struct {
	method, path string
	handle       http.HandlerFunc
	what         string
	query        []param
	in, out      reflect.Type // bodies; nil for none, or bytes
	status       int          // of success
	refusals     string       // the statuses of refusals
	open         bool         // for anybody
	adapter      bool         // in another project's words; also under /at/{instance}
	most         int64        // bytes of the body; 0 is maxBody
}

// param is a parameter of the query.
type param struct {
	name, kind, what string
	needed           bool
}

// watching are the parameters of a list that can be watched.
func watching(filters ...param) []param {
	return append(filters,
		param{name: "watch", kind: "boolean", what: "wait until the index has changed"},
		param{name: "index", kind: "integer", what: "the index of the last answer"},
		param{name: "wait", kind: "string", what: "how long to wait at most, such as 30s"})
}

// body is the type of T.
func body[T any]() reflect.Type { return reflect.TypeFor[T]() }

// routes are all ways to ask.
func (s *Server) routes() []route {
	return append(s.own(), s.adapters()...)
}

// own are those of the exchange's own schema.
func (s *Server) own() []route {
	incarnation := param{name: "incarnation", kind: "string", what: "the life that is meant; any other is refused"}
	needed := incarnation
	needed.needed = true
	name := param{name: "name", kind: "string", what: "which of the instance's blobs; agent when it is missing"}
	step := func(name, what string, h http.HandlerFunc) route {
		return route{method: "POST", path: prefix + "/tickets/{id}/" + name, handle: h, what: what, in: body[progress](), out: body[ticket](), status: 200, refusals: "400 404 409"}
	}
	return []route{
		{method: "GET", path: prefix + "/openapi.json", handle: s.getDocument, what: "This document.", status: 200, open: true},
		{
			method: "POST", path: prefix + "/instances", handle: s.postInstance, what: "Register an instance, or renew it. A new incarnation takes the place of the old.",
			in: body[registration](), out: body[registered](), status: 200, refusals: "400 403 409 503",
		},
		{
			method: "GET", path: prefix + "/instances", handle: s.getInstances, what: "The instances whose lease lasts.", out: body[instanceList](), status: 200, refusals: "400 503",
			query: watching(param{name: "role", kind: "string", what: "prefill, decode or both"}, param{name: "model", kind: "string", what: "weights.model"}, param{name: "domain", kind: "string", what: "domain"}),
		},
		{method: "GET", path: prefix + "/instances/{id}", handle: s.getInstance, what: "One instance.", out: body[instance](), status: 200, refusals: "404"},
		{method: "DELETE", path: prefix + "/instances/{id}", handle: s.deleteInstance, what: "Take an instance out.", query: []param{needed}, status: 204, refusals: "404 409"},
		{
			method: "POST", path: prefix + "/instances/{id}/heartbeat", handle: s.postHeartbeat, what: "Renew a lease. 404 asks to register again, 409 says that another life has taken over.",
			in: body[heartbeat](), out: body[registered](), status: 200, refusals: "400 404 409",
		},
		{
			method: "GET", path: prefix + "/verdict", handle: s.getVerdict, what: "Whether two instances can exchange KV, why not, and how long it takes.", out: body[judged](), status: 200, refusals: "400 404",
			query: []param{{"prefill", "string", "id of the source", true}, {"decode", "string", "id of the consumer", true}, {"bytes", "integer", "how much KV the estimate is for", false}},
		},
		{
			method: "POST", path: prefix + "/tickets", handle: s.postTicket, what: "Plan a transfer. An incompatible pair is refused with its verdict.",
			in: body[order](), out: body[ticket](), status: 201, refusals: "400 404 409 503",
		},
		{
			method: "GET", path: prefix + "/tickets", handle: s.getTickets, what: "Transfers that are open, and those lately closed.", out: body[ticketList](), status: 200, refusals: "400 503",
			query: watching(param{name: "stage", kind: "string", what: "stage"}, param{name: "instance", kind: "string", what: "id of the source or consumer"}),
		},
		{method: "GET", path: prefix + "/tickets/{id}", handle: s.getTicket, what: "One transfer.", out: body[ticket](), status: 200, refusals: "404"},
		step("prefilling", "The source computes the KV.", s.advance(prefilling)),
		step("ready", "The source has computed the KV and keeps it.", s.advance(ready)),
		step("pulling", "The consumer reads, or reads still.", s.advance(pulling)),
		step("done", "The consumer has the KV.", s.advance(done)),
		step("abort", "The transfer will not happen.", s.advance(abort)),
		{method: "PUT", path: prefix + "/blobs/{instance}", handle: s.putBlob, what: "Leave bytes for peers, such as an agent's metadata.", query: []param{needed, name}, status: 204, refusals: "400 404 409 413 503", most: maxBlob},
		{method: "GET", path: prefix + "/blobs/{instance}", handle: s.getBlob, what: "Read them.", query: []param{incarnation, name}, status: 200, refusals: "400 404 409"},
		{method: "GET", path: prefix + "/links", handle: s.getLinks, what: "How fast links between domains have proved to be.", out: body[linkList](), status: 200},
	}
}

// adapters are those in the words of Mooncake and SGLang.
func (s *Server) adapters() []route {
	key := []param{{"key", "string", "the transfer engine's key", true}}
	rank := func(name string) param {
		return param{name, "integer", "a rank; -1 in all four asks for the topology", true}
	}
	return []route{
		{method: "GET", path: "/metadata", handle: s.getMetadata, what: "Mooncake: a value of the transfer engine.", query: key, status: 200, refusals: "404", adapter: true},
		{method: "PUT", path: "/metadata", handle: s.putMetadata, what: "Mooncake: keep a value.", query: key, status: 200, refusals: "400 403 413 503", adapter: true},
		{method: "DELETE", path: "/metadata", handle: s.deleteMetadata, what: "Mooncake: forget a value.", query: key, status: 200, adapter: true},
		{method: "POST", path: "/register", handle: s.postRegister, what: "Mooncake connector: register a worker.", in: body[worker](), status: 200, refusals: "400 403 503", adapter: true},
		{method: "GET", path: "/query", handle: s.getQuery, what: "Mooncake connector: all workers by data-parallel rank.", out: body[map[string]engineEntry](), status: 200, adapter: true},
		{method: "PUT", path: "/route", handle: s.putRoute, what: "SGLang: register a rank.", in: body[routePut](), status: 200, refusals: "400 403 503", adapter: true},
		{
			method: "GET", path: "/route", handle: s.getRoute, what: "SGLang: where a rank listens, or the topology.", out: body[rankInfo](), status: 200, refusals: "400 404 503", adapter: true,
			query: []param{rank("prefill_dp_rank"), rank("prefill_cp_rank"), rank("target_tp_rank"), rank("target_pp_rank")},
		},
		{method: "POST", path: "/register_dp_rank", handle: s.postDPRank, what: "SGLang: which rank has a request.", in: body[dpRank](), status: 200, refusals: "400 503", adapter: true},
		{method: "POST", path: "/query_dp_ranks", handle: s.postQueryDPRanks, what: "SGLang: which ranks have requests.", in: body[roomQuery](), out: body[map[string]int](), status: 200, refusals: "400", adapter: true},
		{method: "GET", path: "/health", handle: health, what: "SGLang: whether the server is there.", status: 200, adapter: true, open: true},
	}
}

func health(w http.ResponseWriter, _ *http.Request) { text(w, http.StatusOK, "OK") }

func (s *Server) getDocument(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(s.doc) // the reader may have gone
}
