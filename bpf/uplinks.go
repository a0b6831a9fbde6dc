// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"fmt"
	"math"
	"net/netip"
)

// Uplink is a device of the host that leads out.
type Uplink struct {
	IfIndex int
	SNAT4   netip.Addr // source of what leaves masqueraded; the zero Addr for none
	SNAT6   netip.Addr
}

// PutUplink lets endpoints leave by a device.
func (d *Datapath) PutUplink(u Uplink) error {
	key := uint32(u.IfIndex)
	if err := d.maps["uplinks"].Put(&key, &mstUplink{Snat4: addrOf(u.SNAT4), Snat6: addrOf(u.SNAT6)}); err != nil {
		return fmt.Errorf("write the uplink %d: %w", u.IfIndex, full(err))
	}
	return nil
}

// DeleteUplink undoes PutUplink; a missing one is no error.
func (d *Datapath) DeleteUplink(ifindex int) error {
	key := uint32(ifindex)
	if err := remove(d.maps["uplinks"], &key); err != nil {
		return fmt.Errorf("remove the uplink %d: %w", ifindex, err)
	}
	return nil
}

// Uplinks reads every uplink, in no order.
func (d *Datapath) Uplinks() ([]Uplink, error) {
	var out []Uplink
	var key uint32
	var v mstUplink
	entries := d.maps["uplinks"].Iterate()
	for entries.Next(&key, &v) {
		out = append(out, Uplink{IfIndex: int(key), SNAT4: v.Snat4.ip(), SNAT6: v.Snat6.ip()})
	}
	if err := entries.Err(); err != nil {
		return nil, fmt.Errorf("read mst_uplinks: %w", err)
	}
	return out, nil
}

// Ages in ns beyond which a masqueraded flow is over (RFC 4787, 5382 and 5508 have the least that they may be).
const (
	snatNew         = 120e9 // SYN without an answer; half-closed flows
	snatEstablished = 7440e9
	snatDatagrams   = 300e9
	snatEcho        = 60e9
)

// CollectFlows removes masqueraded flows that are over, both ways, and counts each endpoint's anew. The
// programs end a flow only for another of the same endpoint's: what one container begins must not end
// what another has.
func (d *Datapath) CollectFlows() error {
	now, err := monotonic()
	if err != nil {
		return err
	}
	type flow struct {
		ways  map[mstTuple]mstCt // there and back
		age   int64
		state uint8
		owner uint32
	}
	flows := map[mstTuple]*flow{} // by the tuple of the way back
	err = walk(d.maps["snat"], func(key mstTuple, v mstCt) {
		back := mstTuple{Saddr: v.Daddr, Daddr: v.Saddr, Sport: v.Dport, Dport: v.Sport, Proto: key.Proto, Dir: dirReply}
		if key.Dir == dirReply {
			back = key
		}
		f := flows[back]
		if f == nil {
			f = &flow{ways: map[mstTuple]mstCt{}, owner: v.Backend, age: math.MaxInt64}
			flows[back] = f
		}
		f.ways[key] = v
		f.age, f.state = min(f.age, int64(now-v.Seen)), max(f.state, v.State)
	})
	if err != nil {
		return fmt.Errorf("read mst_snat: %w", err)
	}
	counts := map[uint32]uint32{}
	for back, f := range flows {
		over := int64(snatEcho)
		switch Protocol(back.Proto) {
		case ProtocolUDP:
			over = snatDatagrams
		case ProtocolTCP:
			over = snatNew
			if f.state == ctEstablished {
				over = snatEstablished
			}
		}
		if f.age <= over {
			counts[f.owner]++
			continue
		}
		for key, was := range f.ways {
			var is mstCt
			if d.maps["snat"].Lookup(&key, &is) != nil || is != was {
				continue // it goes on, or its port is another's by now
			}
			if err := remove(d.maps["snat"], &key); err != nil {
				return fmt.Errorf("remove a masqueraded flow: %w", err)
			}
		}
	}
	return d.recount(counts)
}

// recount writes how many flows each endpoint has.
func (d *Datapath) recount(counts map[uint32]uint32) error {
	var key, v uint32
	var had []uint32
	entries := d.maps["quotas"].Iterate()
	for entries.Next(&key, &v) {
		had = append(had, key)
	}
	if err := entries.Err(); err != nil {
		return fmt.Errorf("read mst_quotas: %w", err)
	}
	for _, index := range had {
		n := counts[index]
		err := error(nil)
		if n == 0 {
			err = remove(d.maps["quotas"], &index)
		} else {
			err = d.maps["quotas"].Put(&index, &n)
		}
		if err != nil {
			return fmt.Errorf("count the flows of the endpoint at %d: %w", index, err)
		}
	}
	return nil
}
