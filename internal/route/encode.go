package route

import "penstock.dev/penstock/internal/stat"

// Encoder is an endpoint that can encode an image.
type Encoder struct {
	Slot   int
	Images int  // there now, this one not among them
	Has    bool // it has encoded this one lately
}

// PickEncoder returns the slot where an image is encoded soonest, NoSlot when there
// is none: those that are there go first, and one that was encoded before is only
// looked up. Equals are told apart by the image, so that one which comes again
// goes where it was, whoever remembers.
func PickEncoder(list []Encoder, image uint64) int {
	best, least, most := NoSlot, 0, uint64(0)
	for _, e := range list {
		// In halves of an image: to look one up is not to encode it.
		cost := 2*e.Images + 2
		if e.Has {
			cost--
		}
		rank := stat.Mix64(image ^ stat.Mix64(uint64(e.Slot)))
		if best == NoSlot || cost < least || cost == least && rank > most {
			best, least, most = e.Slot, cost, rank
		}
	}
	return best
}
