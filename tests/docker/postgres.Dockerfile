# Stands in for the official postgres image where none can be pulled: the same variables, volume and port.
ARG BASE_IMAGE
FROM ${BASE_IMAGE}
RUN apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends postgresql postgresql-contrib
ENV PGDATA=/var/lib/postgresql/data PATH=/usr/lib/postgresql/15/bin:/usr/local/bin:/usr/bin:/bin
RUN install -d -o postgres -g postgres -m 700 "$PGDATA"
COPY postgres-start /usr/local/bin/
VOLUME /var/lib/postgresql/data
USER postgres
CMD ["postgres-start"]
