/* Cards described by an environment variable, for stand-ins of vendors' libraries.
 *
 *   NAME="name=Some GPU,memory_mb=8192;name=Another,rc_memory=3"
 *
 * Cards are separated by ';', their fields by ','. What a field means is the library's business, but for
 * two: rc_QUERY=CODE makes QUERY fail on that card with the library's status CODE, and held=FOLDER names a
 * folder where processes write down what they have of the card: a file each, named by the process id, with a
 * number of MB in it. Files of processes that are gone count for nothing, as a driver takes memory back.
 */
#ifndef XGEN_RAY_STANDIN_CARDS_H
#define XGEN_RAY_STANDIN_CARDS_H

#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_CARDS 16
#define MAX_FIELDS 24
#define MAX_TEXT 128
#define MAX_HOLDERS 32

struct field {
    char key[MAX_TEXT];
    char value[MAX_TEXT];
};

struct card {
    struct field fields[MAX_FIELDS];
    int field_count;
};

struct machine {
    struct card cards[MAX_CARDS];
    unsigned card_count;
};

static inline void read_card(struct card *card, char *text)
{
    char *rest = NULL;
    for (char *part = strtok_r(text, ",", &rest); part; part = strtok_r(NULL, ",", &rest)) {
        char *equals = strchr(part, '=');
        if (!equals || card->field_count == MAX_FIELDS)
            abort(); /* a test that is described wrongly must not pass by accident */
        struct field *field = &card->fields[card->field_count++];
        snprintf(field->key, MAX_TEXT, "%.*s", (int)(equals - part), part);
        snprintf(field->value, MAX_TEXT, "%s", equals + 1);
    }
}

/* Read the cards anew: each init of a library starts from the environment as it is then. */
static inline void read_machine(struct machine *machine, const char *variable)
{
    memset(machine, 0, sizeof *machine);
    const char *description = getenv(variable);
    if (!description)
        return;
    char *text = strdup(description), *rest = NULL;
    for (char *part = strtok_r(text, ";", &rest); part; part = strtok_r(NULL, ";", &rest)) {
        if (machine->card_count == MAX_CARDS)
            abort();
        read_card(&machine->cards[machine->card_count++], part);
    }
    free(text);
}

static inline const char *text_of(const struct card *card, const char *key, const char *otherwise)
{
    for (int i = 0; i < card->field_count; i++)
        if (!strcmp(card->fields[i].key, key))
            return card->fields[i].value;
    return otherwise;
}

static inline uint64_t number_of(const struct card *card, const char *key, uint64_t otherwise)
{
    const char *text = text_of(card, key, NULL);
    return text ? strtoull(text, NULL, 0) : otherwise;
}

struct holder {
    unsigned pid;
    uint64_t megabytes;
};

/* The processes that hold memory of the card now, and how many they are. */
static inline unsigned read_holders(const struct card *card, struct holder *holders)
{
    const char *path = text_of(card, "held", NULL);
    DIR *folder = path ? opendir(path) : NULL;
    unsigned found = 0;
    for (struct dirent *entry; folder && found < MAX_HOLDERS && (entry = readdir(folder));) {
        unsigned long long megabytes = 0;
        int pid = atoi(entry->d_name);
        if (pid <= 0 || (kill(pid, 0) && errno == ESRCH))
            continue;
        char name[MAX_TEXT + sizeof entry->d_name + 1];
        snprintf(name, sizeof name, "%s/%s", path, entry->d_name);
        FILE *file = fopen(name, "r");
        if (file && fscanf(file, "%llu", &megabytes) == 1)
            holders[found++] = (struct holder){(unsigned)pid, megabytes};
        if (file)
            fclose(file);
    }
    if (folder)
        closedir(folder);
    return found;
}

static inline uint64_t held_megabytes(const struct card *card)
{
    struct holder holders[MAX_HOLDERS];
    uint64_t megabytes = 0;
    for (unsigned i = 0, found = read_holders(card, holders); i < found; i++)
        megabytes += holders[i].megabytes;
    return megabytes;
}

/* The status that a query was told to fail with on this card; 0 is success for every library here. */
static inline int told_to_fail(const struct card *card, const char *query)
{
    char key[MAX_TEXT];
    snprintf(key, sizeof key, "rc_%s", query);
    return (int)number_of(card, key, 0);
}

/* VARIABLE="hang:init", "crash:memory", "print:init": misbehave in one query, as vendors' code can. */
static inline void misbehave(const char *variable, const char *query)
{
    const char *fault = getenv(variable);
    const char *colon = fault ? strchr(fault, ':') : NULL;
    if (!colon || strcmp(colon + 1, query))
        return;
    if (!strncmp(fault, "hang", 4))
        for (;;)
            pause();
    if (!strncmp(fault, "crash", 5))
        raise(SIGSEGV);
    if (!strncmp(fault, "print", 5)) {
        printf("a library that talks on stdout\n");
        fflush(stdout);
    }
}

#endif
