// SPDX-License-Identifier: Apache-2.0

package nft

import (
	"net/netip"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// Plain is what people write by hand on a host that routes: a DNAT rule for each VIP. The bench measures
// against it.
type Plain struct {
	VIPs    []netip.Addr // IPv4, in the order of the rules
	Backend netip.Addr   // of all of them
	// Masquerade has the host stand in for clients of the prefix, where replies would go past it.
	Masquerade netip.Prefix
}

// plainBatch is how many rules go to the kernel at once; all would not fit into a socket's buffer.
const plainBatch = 100

var plainTable = &nftables.Table{Family: nftables.TableFamilyIPv4, Name: "mustang_plain"}

// Set makes the rules in the namespace of the calling thread, in a table of their own that [RemovePlain] removes.
func (p Plain) Set() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	c.AddTable(plainTable)
	dnat := c.AddChain(&nftables.Chain{
		Name: "prerouting", Table: plainTable, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityNATDest,
	})
	snat := c.AddChain(&nftables.Chain{
		Name: "postrouting", Table: plainTable, Type: nftables.ChainTypeNAT,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	f := &families[0]
	if p.Masquerade.IsValid() {
		c.AddRule(&nftables.Rule{Table: plainTable, Chain: snat, Exprs: rule(
			f.loadsSaddr(reg), f.isIn(p.Masquerade), f.loadsDaddr(reg), f.isIn(p.Masquerade), &expr.Masq{},
		)})
	}
	for i, vip := range p.VIPs {
		c.AddRule(&nftables.Rule{Table: plainTable, Chain: dnat, Exprs: rule(
			f.loadsDaddr(reg), equals(reg, vip.AsSlice()),
			&expr.Immediate{Register: reg, Data: p.Backend.AsSlice()},
			&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: reg},
		)})
		if i%plainBatch == plainBatch-1 {
			if err := c.Flush(); err != nil {
				return explain(err)
			}
		}
	}
	return explain(c.Flush())
}

// RemovePlain undoes [Plain.Set].
func RemovePlain() error {
	c, err := nftables.New()
	if err != nil {
		return err
	}
	c.DelTable(plainTable)
	return c.Flush()
}
