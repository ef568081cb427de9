from colossal_llama.commands.evaluate import main

if __name__ == "__main__":
    raise SystemExit(main())
