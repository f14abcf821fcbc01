package pool

import (
	"slices"

	"penstock.dev/penstock/internal/fleet"
	"penstock.dev/penstock/internal/health"
	"penstock.dev/penstock/internal/route"
)

// The images of a request can be encoded by endpoints that do nothing else, before
// the prompt is computed. Each image has a leg of its own. An image that nobody
// has encoded is encoded where the prompt is computed: no leg's failure is one of
// the attempt.

// encode is what became of a request's images.
type encode struct {
	slots []int              // by image; NoSlot when it has been encoded or nobody does
	tried []fleet.EndpointID // failed at one of them
	open  int
}

// sendImages finds for each image of r the endpoint that encodes it and appends
// them to list. A request that has failed somewhere does without: it may have been
// what was encoded.
func (b *Brain) sendImages(r *request, list []fleet.EndpointID) []fleet.EndpointID {
	r.encode.slots, r.encode.tried, r.encode.open = r.encode.slots[:0], r.encode.tried[:0], 0
	if len(r.tried) > 0 || len(r.Images) == 0 || !b.encodes() {
		return list
	}
	for i := range r.Images {
		r.encode.slots = append(r.encode.slots, route.NoSlot)
		list = append(list, b.sendImage(r, i))
	}
	return list
}

// encodes reports whether any endpoint is there to encode.
func (b *Brain) encodes() bool {
	return slices.ContainsFunc(b.endpoints, func(e endpoint) bool { return e.present && e.Role == fleet.RoleEncode })
}

// sendImage has one image of r encoded, if somebody can.
func (b *Brain) sendImage(r *request, image int) fleet.EndpointID {
	b.encoders = b.encoders[:0]
	for i := range b.endpoints {
		if e := &b.endpoints[i]; e.present && b.canEncode(i, e, r) {
			b.encoders = append(b.encoders, route.Encoder{Slot: i, Images: e.inFlight, Has: e.images.Has(r.Images[image])})
		}
	}
	slot := route.PickEncoder(b.encoders, uint64(r.Images[image]))
	if slot == route.NoSlot {
		return fleet.NoEndpoint
	}
	r.encode.slots[image] = slot
	r.encode.open++
	return b.enlist(slot).Endpoint.Endpoint
}

func (b *Brain) canEncode(slot int, e *endpoint, r *request) bool {
	state := b.deps.Health.State(slot)
	return e.Role == fleet.RoleEncode && e.Change != EndpointDrain && !slices.Contains(r.encode.tried, e.Endpoint.Endpoint) &&
		state != health.Ejected && (state != health.Trial || e.inFlight == 0) && !b.config.Room.Full(e.inFlight, e.limits.MaxSeqs)
}

// onEncoded takes what became of an image. One that has failed is sent elsewhere,
// and the answer says where; what is wrong with the image itself, the engine that
// is asked for the whole says better.
func (b *Brain) onEncoded(ev *Encoded, out []Action) []Action {
	r := b.requests[ev.Req]
	if r == nil || ev.Attempt != r.attempts || ev.Image >= len(r.encode.slots) || r.encode.slots[ev.Image] == route.NoSlot {
		return out
	}
	slot := r.encode.slots[ev.Image]
	b.leaveEncoder(r, ev.Image)
	if ev.Failure == fleet.FailNone {
		if slot != lost {
			b.endpoints[slot].images.Add(r.Images[ev.Image])
			if b.deps.Health.Success(b.now, slot) {
				out = b.tellFitness(slot, fleet.FailNone, out)
			}
		}
		b.imagesDone(r)
		return b.pump(out)
	}
	if slot != lost {
		e := &b.endpoints[slot]
		e.failed++
		r.encode.tried = append(r.encode.tried, e.Endpoint.Endpoint)
		if ev.Failure.Blames() {
			out = b.blame(slot, ev.Failure, out)
		}
	}
	a := Action{Kind: Encode, Req: r.Req, Attempt: r.attempts, Image: ev.Image}
	if ev.Failure.Retryable() && ev.Failure != fleet.FailTimeout { // who has waited so long waits for nobody else
		a.Endpoint = b.sendImage(r, ev.Image)
	}
	if a.Endpoint != fleet.NoEndpoint {
		a.Gen = b.endpoints[r.encode.slots[ev.Image]].Gen
	}
	b.imagesDone(r)
	return b.pump(append(out, a))
}

// imagesDone begins the times of r's other legs once its images are done with:
// these have waited for nobody of theirs.
func (b *Brain) imagesDone(r *request) {
	if r.encode.open == 0 {
		r.job.Begin(b.now)
		r.prefill.job.Begin(b.now)
	}
}

// leaveEncoder takes an image of r off the endpoint that encodes it.
func (b *Brain) leaveEncoder(r *request, image int) {
	slot := r.encode.slots[image]
	if slot == route.NoSlot {
		return
	}
	if slot != lost {
		b.endpoints[slot].inFlight--
	}
	r.encode.slots[image] = route.NoSlot
	r.encode.open--
}

// leaveEncoders takes all images of r off the endpoints that encode them.
func (b *Brain) leaveEncoders(r *request) {
	for i := range r.encode.slots {
		b.leaveEncoder(r, i)
	}
}
