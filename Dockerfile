# syntax-free on purpose: it builds with any builder and without a registry.
# Build the binary first: make build
FROM scratch
COPY bin/mustang /usr/bin/mustang
ENTRYPOINT ["/usr/bin/mustang"]
CMD ["daemon"]
