package admin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"time"
)

// Transfers tells of the KV that engines hand over to each other.
type Transfers interface {
	// Transfers returns what there is to tell, with so many of the latest tickets.
	Transfers(tickets int) TransferStatus
	// AbortTransfer gives a transfer up.
	AbortTransfer(id, reason string) error
}

// TransferStatus is the answer of /api/transfers.
type TransferStatus struct {
	URL       string             `json:"url,omitempty"` // where engines register; "" for nowhere
	Instances []TransferInstance `json:"instances"`
	Pools     []TransferPool     `json:"pools"`
	Pairs     []TransferPair     `json:"pairs"`
	Links     []TransferLink     `json:"links"`
	Tickets   []TransferTicket   `json:"tickets"` // those that are open, and the latest of the others
	Refused   map[string]uint64  `json:"refused"` // requests of engines, by why
}

// TransferInstance is an engine as it has told of itself, or as the gateway knows
// one that says nothing.
type TransferInstance struct {
	ID          string    `json:"id"`
	Incarnation string    `json:"incarnation"`
	Registered  bool      `json:"registered"` // by itself
	Endpoints   []string  `json:"endpoints"`  // that it is, as POOL/NAME
	Role        string    `json:"role"`
	Connector   string    `json:"connector"`
	Domain      string    `json:"domain,omitempty"`
	Expires     time.Time `json:"expires"`
}

// TransferPool is how a pool's requests were served, and which of its pairs cannot
// exchange KV.
type TransferPool struct {
	Pool   string       `json:"pool"`
	Split  uint64       `json:"split"` // attempts dispatched to two endpoints
	Whole  uint64       `json:"whole"` // and to one
	Barred []BarredPair `json:"barred"`
}

// BarredPair is a pair of endpoints that cannot exchange KV.
type BarredPair struct {
	Prefill string `json:"prefill"`
	Decode  string `json:"decode"`
	Why     string `json:"why"`
}

// TransferPair is what has come of the transfers between two instances.
type TransferPair struct {
	Source   string            `json:"source"`
	Consumer string            `json:"consumer"`
	Planned  uint64            `json:"planned"`
	Done     uint64            `json:"done"`
	Failed   map[string]uint64 `json:"failed"`  // by how an engine has failed
	Aborted  uint64            `json:"aborted"` // for other reasons
	Expired  uint64            `json:"expired"`
	InFlight int               `json:"inFlight"`
	Bytes    int64             `json:"bytes"`
	Tokens   int64             `json:"tokens"`
	Took     TransferTimes     `json:"took"`
	Expected TransferTimes     `json:"expected"` // as was predicted of the same
	Link     *TransferLink     `json:"link"`     // null while neither is there
}

// TransferTimes are times in milliseconds; the quantiles are of the latest.
type TransferTimes struct {
	Count  uint64  `json:"count"`
	MeanMs float64 `json:"meanMs"`
	P50Ms  float64 `json:"p50Ms"`
	P95Ms  float64 `json:"p95Ms"`
}

// TransferLink is what finished transfers have taught of the link between two
// domains; with no samples it is what is configured.
type TransferLink struct {
	From           string  `json:"from"`
	To             string  `json:"to"`
	LatencyMs      float64 `json:"latencyMs"`
	BytesPerSecond float64 `json:"bytesPerSecond"` // of one pair of ranks
	Samples        int     `json:"samples"`
	Error          float64 `json:"error"` // by what factor, less 1, estimates have been off
}

// TransferTicket is one transfer.
type TransferTicket struct {
	ID         string    `json:"id"`
	Source     string    `json:"source"`
	Consumer   string    `json:"consumer"`
	Stage      string    `json:"stage"`
	Tokens     int64     `json:"tokens"`
	Bytes      int64     `json:"bytes"`
	Planned    time.Time `json:"planned"`
	TookMs     float64   `json:"tookMs,omitempty"`
	ExpectedMs float64   `json:"expectedMs,omitempty"`
	Reason     string    `json:"reason,omitempty"`
}

var errNoExchange = errors.New("transfers are not kept account of: set transfer.enabled")

// ErrNoTransfer says that there is no open transfer of an id.
var ErrNoTransfer = errors.New("no open transfer")

// defaultTickets is how many tickets are told of without asking for more.
const defaultTickets = 50

func (a *adminPort) transfers(w http.ResponseWriter, r *http.Request) {
	n := defaultTickets
	if v := r.URL.Query().Get("tickets"); v != "" {
		var err error
		if n, err = strconv.Atoi(v); err != nil || n < 0 || n > maxLimit {
			fail(w, http.StatusBadRequest, fmt.Sprintf("tickets must be a number from 0 to %d, is %q", maxLimit, v))
			return
		}
	}
	if a.o.Transfers == nil {
		fail(w, http.StatusNotFound, errNoExchange.Error())
		return
	}
	reply(w, http.StatusOK, a.o.Transfers.Transfers(n))
}

func (a *adminPort) abortTransfer(w http.ResponseWriter, r *http.Request) {
	var body struct {
		Reason string `json:"reason"`
	}
	err := json.NewDecoder(io.LimitReader(r.Body, maxRequest)).Decode(&body)
	switch {
	case a.o.Transfers == nil:
		fail(w, http.StatusNotFound, errNoExchange.Error())
		return
	case err != nil && !errors.Is(err, io.EOF):
		fail(w, http.StatusBadRequest, fmt.Sprintf("the body must be {\"reason\":…}: %v", err))
		return
	}
	a.change(w, a.o.Transfers.AbortTransfer(r.PathValue("id"), body.Reason))
}
