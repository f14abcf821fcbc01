package admin

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"
)

// Fleet is what the admin port may change.
type Fleet interface {
	// PutEndpoint adds an endpoint to a pool or renews its lease; lease 0 is for
	// ever. It returns the endpoint's name, made from its URL when none is given.
	PutEndpoint(pool string, e NewEndpoint, lease time.Duration) (string, error)
	// DeleteEndpoint takes one out that was put in over the API. It may finish
	// what it has for as long as drain says; 0 is the pool's own time.
	DeleteEndpoint(pool, name string, drain time.Duration) error
	// HoldEndpoint gives an endpoint, or all ranks of a server, nothing new, whatever
	// the source, or lets it serve again.
	HoldEndpoint(pool, name string, on bool) error
	// SetRole gives an endpoint, or all ranks of a server, another role, through a
	// drain that takes at most wait (0: the pool's own time); "" is what its source
	// says.
	SetRole(pool, name, role string, wait time.Duration) error
}

// ReloadState tells how the last reload of the Fleet file went.
type ReloadState struct {
	At       time.Time `json:"at"`
	Result   string    `json:"result"` // started, applied, refused or rolled back
	Problems []string  `json:"problems,omitempty"`
}

// NewEndpoint is a server that is put into a pool.
type NewEndpoint struct {
	Name     string `json:"name"`
	URL      string `json:"url"`
	Ranks    int    `json:"ranks"`    // data-parallel ranks; 0: it is one endpoint
	RankMode string `json:"rankMode"` // auto, port or header
}

// endpointRequest is the body of POST /api/endpoints and /api/register.
type endpointRequest struct {
	Pool  string `json:"pool"`
	Lease string `json:"lease"` // a duration such as 30s

	NewEndpoint
}

// maxRequest is the largest body the admin port reads.
const maxRequest = 64 << 10

func (a *adminPort) putEndpoint(w http.ResponseWriter, r *http.Request) {
	a.put(w, r, 0)
}

// defaultLease is that of an engine that registers itself and names none.
const defaultLease = time.Minute

// register is putEndpoint for engines themselves: with a token of its own and
// always with a lease, so that one that dies is forgotten.
func (a *adminPort) register(w http.ResponseWriter, r *http.Request) {
	got, bearer := strings.CutPrefix(r.Header.Get("Authorization"), "Bearer ")
	switch {
	case a.o.RegisterToken == "":
		fail(w, http.StatusNotFound, "engines cannot register themselves here: start with --register-token")
	case !bearer || subtle.ConstantTimeCompare([]byte(got), []byte(a.o.RegisterToken)) != 1:
		w.Header().Set("WWW-Authenticate", "Bearer")
		fail(w, http.StatusUnauthorized, "registration wants its token: Authorization: Bearer …")
	default:
		a.put(w, r, defaultLease)
	}
}

func (a *adminPort) put(w http.ResponseWriter, r *http.Request, lease time.Duration) {
	var req endpointRequest
	d := json.NewDecoder(io.LimitReader(r.Body, maxRequest))
	d.DisallowUnknownFields()
	if err := d.Decode(&req); err != nil {
		fail(w, http.StatusBadRequest, fmt.Sprintf("the body must be {\"pool\":…, \"url\":…, \"name\":…, \"lease\":\"30s\", \"ranks\":…, \"rankMode\":…}: %v", err))
		return
	}
	if req.Lease != "" {
		var err error
		if lease, err = time.ParseDuration(req.Lease); err != nil || lease <= 0 {
			fail(w, http.StatusBadRequest, fmt.Sprintf("lease: must be a positive duration such as 30s, is %q", req.Lease))
			return
		}
	}
	name, err := a.o.Fleet.PutEndpoint(req.Pool, req.NewEndpoint, lease)
	if err != nil {
		fail(w, http.StatusBadRequest, err.Error())
		return
	}
	reply(w, http.StatusOK, map[string]string{"pool": req.Pool, "name": name, "url": req.URL, "lease": lease.String()})
}

func (a *adminPort) deleteEndpoint(w http.ResponseWriter, r *http.Request) {
	drain := time.Duration(0)
	if v := r.URL.Query().Get("drain"); v != "" {
		var err error
		if drain, err = time.ParseDuration(v); err != nil || drain <= 0 {
			fail(w, http.StatusBadRequest, fmt.Sprintf("drain: must be a positive duration such as 30s, is %q", v))
			return
		}
	}
	a.change(w, a.o.Fleet.DeleteEndpoint(r.PathValue("pool"), r.PathValue("name"), drain))
}

func (a *adminPort) drainEndpoint(w http.ResponseWriter, r *http.Request) {
	a.change(w, a.o.Fleet.HoldEndpoint(r.PathValue("pool"), r.PathValue("name"), true))
}

func (a *adminPort) undrainEndpoint(w http.ResponseWriter, r *http.Request) {
	a.change(w, a.o.Fleet.HoldEndpoint(r.PathValue("pool"), r.PathValue("name"), false))
}

func (a *adminPort) change(w http.ResponseWriter, err error) {
	if err != nil {
		fail(w, http.StatusNotFound, err.Error())
		return
	}
	reply(w, http.StatusOK, map[string]string{"result": "ok"})
}

// Turning is a change of an endpoint's role: it takes nothing new until what it has
// in the old role has ended, or the time for that is up.
type Turning struct {
	From  string    `json:"from"`
	To    string    `json:"to"`
	Since time.Time `json:"since"`
	Until time.Time `json:"until"` // zero while it cannot begin
	// Draining is false while nobody else could answer requests.
	Draining bool `json:"draining"`
	Open     int  `json:"open"` // requests it still has in the old role
}

// roleRequest is the body of POST …/role.
type roleRequest struct {
	Role    string `json:"role"`
	Timeout string `json:"timeout"` // a duration such as 5m
}

func (a *adminPort) setRole(w http.ResponseWriter, r *http.Request) {
	var req roleRequest
	d := json.NewDecoder(io.LimitReader(r.Body, maxRequest))
	d.DisallowUnknownFields()
	err := d.Decode(&req)
	wait := time.Duration(0)
	if err == nil && req.Timeout != "" {
		if wait, err = time.ParseDuration(req.Timeout); err == nil && wait <= 0 {
			err = fmt.Errorf("timeout: must be positive, is %v", wait)
		}
	}
	if err == nil && req.Role == "" {
		err = errors.New("role: must be both, prefill or decode")
	}
	if err != nil {
		fail(w, http.StatusBadRequest, fmt.Sprintf("the body must be {\"role\":…, \"timeout\":\"5m\"}: %v", err))
		return
	}
	if err := a.o.Fleet.SetRole(r.PathValue("pool"), r.PathValue("name"), req.Role, wait); err != nil {
		fail(w, http.StatusConflict, err.Error())
		return
	}
	reply(w, http.StatusOK, map[string]string{"result": "ok"})
}

func (a *adminPort) clearRole(w http.ResponseWriter, r *http.Request) {
	a.change(w, a.o.Fleet.SetRole(r.PathValue("pool"), r.PathValue("name"), "", 0))
}
