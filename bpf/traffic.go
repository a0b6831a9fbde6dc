// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"cmp"
	"fmt"
	"slices"
)

// Traffic is what a backend has got of a service since its entry was made. All counts only grow.
type Traffic struct {
	Service uint32 // [Service.ID], never 0
	Backend uint32 // [Backend.ID], never 0
	// Connections are flows begun: TCP connections, also those that the backend's kernel then refused, and
	// datagram sockets or, per packet, tuples.
	Connections uint64
	// ToBackend and FromBackend are bytes of payload. Of a TCP socket that was translated when it connected
	// they are counted once, when it closes, and may hold 2 bytes more (TCP counts SYN and FIN as one each);
	// of datagrams that were sent so there are none, because no program sees them. Per packet they are
	// counted with each packet, repeated ones and all, but not with second and later fragments.
	ToBackend   uint64
	FromBackend uint64
}

// Traffic reads the counters of every service and backend, by service, then by backend. Of a backend that is gone
// the last counts stay until [Datapath.CollectTraffic]. The map holds 65,536 pairs; when it is full, which
// [Datapath.Fill] shows, new pairs are not counted and the others go on.
func (d *Datapath) Traffic() ([]Traffic, error) {
	var out []Traffic
	var key mstTrafficKey
	var perCPU []mstTraffic
	entries := d.maps["traffic"].Iterate()
	for entries.Next(&key, &perCPU) {
		t := Traffic{Service: key.Service, Backend: key.Backend}
		for _, one := range perCPU {
			t.Connections += one.Connections
			t.ToBackend += one.ToBackend
			t.FromBackend += one.FromBackend
		}
		out = append(out, t)
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read mst_traffic: %w", err)
	}
	slices.SortFunc(out, func(a, b Traffic) int {
		return cmp.Or(cmp.Compare(a.Service, b.Service), cmp.Compare(a.Backend, b.Backend))
	})
	return out, nil
}

// CollectTraffic removes the counters of backends that are gone. Ids of backends are not used again, so a stream
// that closes later makes a new entry for the bytes it had, until the next collection.
func (d *Datapath) CollectTraffic() error {
	counted, err := d.Traffic() // first: who is in it and not among the backends then is gone, and not new
	if err != nil {
		return err
	}
	backends, err := d.Backends()
	if err != nil {
		return err
	}
	alive := map[uint32]bool{}
	for _, b := range backends {
		alive[b.ID] = true
	}
	var gone []mstTrafficKey
	for _, t := range counted {
		if !alive[t.Backend] {
			gone = append(gone, mstTrafficKey{Service: t.Service, Backend: t.Backend})
		}
	}
	if err := removeAll(d.maps["traffic"], gone); err != nil {
		return fmt.Errorf("remove counters of backends that are gone: %w", err)
	}
	return nil
}
