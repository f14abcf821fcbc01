package server

import "sync"

// maxStored bounds the responses that are kept; the oldest is forgotten first.
const maxStored = 256

// responseStore is the responses that clients may come back to.
type responseStore struct {
	mu    sync.Mutex
	byID  map[string]*storedResponse
	order []string
}

// storedResponse is one of them. Its handler writes it, others read it.
type storedResponse struct {
	call *call
	over chan struct{} // closed when it changes no more

	mu    sync.Mutex
	json  []byte
	turns []message // the conversation up to and with its answer; empty until then
}

func (rs *responseStore) add(id string, r *storedResponse) {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	if rs.byID == nil {
		rs.byID = make(map[string]*storedResponse)
	}
	if rs.byID[id] == nil {
		if len(rs.order) == maxStored {
			delete(rs.byID, rs.order[0])
			rs.order = rs.order[1:]
		}
		rs.order = append(rs.order, id)
	}
	rs.byID[id] = r
}

// find returns nil for one that is not, or no longer, there.
func (rs *responseStore) find(id string) *storedResponse {
	rs.mu.Lock()
	defer rs.mu.Unlock()
	return rs.byID[id]
}

func (r *storedResponse) show() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.json
}

func (r *storedResponse) conversation() []message {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.turns
}
