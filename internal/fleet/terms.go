package fleet

import "time"

// SLO is what a request should see of latency; zero fields ask for nothing.
type SLO struct {
	TTFT time.Duration // to the first token
	TPOT time.Duration // mean per output token after the first
}

// Tenant stands for whom a request is charged to, by a hash of the name.
type Tenant uint64

// NoTenant is the tenant of requests that name none.
const NoTenant Tenant = 0

// Terms are what a request is served on: for whom, how urgently, and how fast
// it should be.
type Terms struct {
	Tenant   Tenant
	Priority int // higher goes first; 0 unless the objective says otherwise
	SLO      SLO
}
