// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"

	"github.com/mustang-net/mustang/metrics"
)

const intro = "# Metrics\n" + `
For Prometheus, off by default. In mustang.toml (or as MUSTANG_METRICS):

` + "```toml" + `
metrics = "127.0.0.1:9464"            # or the path of a unix socket: "/run/mustang/metrics.sock"
` + "```" + `

` + "`systemctl reload mustang`" + ` (SIGHUP) switches them on and off. Only loopback addresses are taken: the metrics name every service and
container, and nobody who reads them is asked who he is. To read them from another machine, run an agent on the host, or a proxy
that asks for a password. The socket is root's (mode 0600).

` + "```yaml" + `
# prometheus.yml
scrape_configs:
  - job_name: mustang                 # dashboard and rules go by this name
    static_configs: [{targets: ["127.0.0.1:9464"]}]
rule_files: [mustang.rules.yml]
` + "```" + `

A Grafana dashboard and alert rules are in [plugin-config/dashboards](../plugin-config/dashboards). What to do about an alert is in
[troubleshooting](troubleshooting.md#alerts).

Almost everything is read from the kernel's maps when somebody asks, and costs nothing until then. At most two scrapes are answered at a
time, each within 10 s; others get 503. A source that cannot be read is missing from the scrape, ` + "`mustang_source_up`" + ` says so, and
the log does once.

Labels are bounded by what there is on the host: reasons, maps and methods are fixed lists, and a network, service, backend or subnet
that goes takes its series along. Of backends there are at most 10,000 series a metric. A published port is a service called
` + "`0.0.0.0:8080/tcp`" + `. The label network is "" for what belongs to none: services and drops of the host's own, and drops of
slaves, which are refused at their parent. The label direction is from-container, to-container, socket, or nftables with ebpf=off, where
no bytes are counted. Counters of drops and of lost events begin with the maps (usually at boot), those of a backend with its service's
entry, all others with the daemon.

Besides these there are ` + "`go_…` and `process_…`" + ` of the daemon.

| Metric | Type | Labels | Meaning | Series |
|---|---|---|---|---|
`

// page is docs/metrics.md.
func page() []byte {
	var out strings.Builder
	out.WriteString(intro)
	for _, m := range metrics.Catalog() {
		labels := ""
		for i, l := range m.Labels {
			if i > 0 {
				labels += ", "
			}
			labels += "`" + l + "`"
		}
		fmt.Fprintf(&out, "| `%s` | %s | %s | %s | %s |\n", m.Name, m.Kind, labels, m.Help, m.Bound)
	}
	out.WriteString("\nThis page is made by `go run ./metrics/gen`.\n")
	return []byte(out.String())
}
