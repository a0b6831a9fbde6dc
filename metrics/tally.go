// SPDX-License-Identifier: Apache-2.0

package metrics

// tally sums the counters of devices by network, so that the sums never fall: a device that goes takes its counter along, or leaves it
// to no network.
type tally struct {
	last map[dropKey]count
	sums map[dropLabels]count
}

type dropKey struct {
	reason, direction string
	device            int
}

type dropLabels struct{ reason, direction, network string }

type count struct{ packets, bytes uint64 }

func (c count) plus(d count) count { return count{c.packets + d.packets, c.bytes + d.bytes} }

// since is what was added to was; everything, if the counter began anew.
func (c count) since(was count) count {
	if c.packets < was.packets || c.bytes < was.bytes {
		return c
	}
	return count{c.packets - was.packets, c.bytes - was.bytes}
}

// add takes the counters as they are now, and forgets networks that are no more.
func (t *tally) add(now []Drop, networks map[string]bool) map[dropLabels]count {
	seen := make(map[dropKey]count, len(now))
	if t.sums == nil {
		t.sums = map[dropLabels]count{}
	}
	for _, d := range now {
		key, total := dropKey{d.Reason, d.Direction, d.Device}, count{d.Packets, d.Bytes}
		seen[key] = seen[key].plus(total)
	}
	of := map[int]string{}
	for _, d := range now {
		of[d.Device] = d.Network
	}
	for key, total := range seen {
		labels := dropLabels{key.reason, key.direction, of[key.device]}
		t.sums[labels] = t.sums[labels].plus(total.since(t.last[key]))
	}
	t.last = seen
	for labels := range t.sums {
		if labels.network != "" && !networks[labels.network] {
			delete(t.sums, labels)
		}
	}
	return t.sums
}
