from colossal_llama.commands.merge_lora import main

if __name__ == "__main__":
    raise SystemExit(main())
