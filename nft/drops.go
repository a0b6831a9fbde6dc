// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// The reasons for which the host's tables drop packets, by the names that the programs give them.
const (
	spoofed  = "spoofed"
	isolated = "isolated"
)

// Drops counts the packets that the host's tables dropped, by reason.
func (t *Tables) Drops() map[string]uint64 {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := map[string]uint64{}
	inet, bridge := hostTables()
	for _, table := range []*nftables.Table{inet, bridge} {
		for reason, c := range drops(table) {
			out[reason] += c.Packets
		}
	}
	return out
}

// drops reads the counters of a table; one that is missing has none.
func drops(t *nftables.Table) map[string]*expr.Counter {
	out := map[string]*expr.Counter{}
	c, err := nftables.New()
	if err != nil {
		return out
	}
	objects, err := c.GetNamedObjects(t)
	if err != nil {
		return out
	}
	for _, o := range objects {
		if o, ok := o.(*nftables.NamedObj); ok {
			if counter, ok := o.Obj.(*expr.Counter); ok && o.Table.Name == t.Name {
				out[o.Name] = counter
			}
		}
	}
	return out
}

// addCounters makes a table with its counters, which go on from where they were.
func addCounters(c *nftables.Conn, t *nftables.Table, from map[string]*expr.Counter) *nftables.Table {
	c.AddTable(t)
	for _, reason := range []string{spoofed, isolated} {
		counter := from[reason]
		if counter == nil {
			counter = &expr.Counter{}
		}
		c.AddObj(&nftables.NamedObj{Table: t, Name: reason, Type: nftables.ObjTypeCounter, Obj: counter})
	}
	return t
}

func countsAs(reason string) expr.Any {
	return &expr.Objref{Type: unix.NFT_OBJECT_COUNTER, Name: reason}
}
